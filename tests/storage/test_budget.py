"""The cost of a layout, compared with the paper's numbers and with files on disk."""

from pathlib import Path

import pytest

from storage import Layout, SiteShape, Store, budget
from support.storage_fakes import fill, label_shard, tiny_layout

PAPER_SITES = tuple(
    SiteShape(f"{block}.{number}", tokens, channels)
    for block, count, tokens, channels in (
        ("down.0", 2, 4096, 320), ("down.1", 2, 1024, 640), ("down.2", 2, 256, 1280),
        ("mid", 1, 64, 1280), ("up.1", 3, 256, 1280), ("up.2", 3, 1024, 640),
        ("up.3", 3, 4096, 320),
    )
    for number in range(count)
)  # fmt: skip


def test_the_cost_of_the_papers_experiment():
    """428 GB of activations, 18.5 thousand network calls, 23.1 MB for each image and step."""
    layout = Layout(617, 8, ("trained", "random"), PAPER_SITES)
    price = budget.price(layout)
    assert sum(site.tokens * site.channels for site in PAPER_SITES) == 11_550_720
    padded = 624 / 617  # the last shard is padded
    assert price.families()["activations.zarr"] / 1e9 == pytest.approx(427.6 * padded, rel=1e-3)
    assert price.unet_calls == 18_510
    assert price.unet_batches == 78 * 15 * 2
    assert price.chunk_bytes == 8 * 4096 * 320 * 2 + 4
    assert sum(price.sites().values()) == price.families()["activations.zarr"]
    assert price.sites()["up.3.2"] == 2 * 15 * 78 * price.chunk_bytes
    assert price.slice_bytes == 617 * 4096 * 320 * 2


def test_the_cost_equals_the_size_of_a_full_store(tmp_path: Path):
    layout = tiny_layout()
    store = fill(Store.create(str(tmp_path), layout, durable=False))
    for shard in range(layout.shards):
        label_shard(store, shard)
    chunks = {p: n for p, n in store.files.list().items() if "/c/" in p and p not in layout.documents()}
    price = budget.price(layout)
    assert price.files == len(chunks)
    assert price.total == sum(chunks.values())
    for path, size in price.arrays.items():
        assert size == sum(n for p, n in chunks.items() if p.startswith(f"{path}/c/"))


def test_writers_hold_two_steps_of_one_shard():
    layout = tiny_layout()
    step = 4 * 2 * (16 * 8 + 4 * 12) + 2 * 4 * 4 * (4 * 2 * 3)
    assert budget.price(layout).peak_writer_bytes == 2 * step + 4 * 8 * 6 * 3


def test_what_does_not_fit_is_refused(tmp_path: Path):
    url = str(tmp_path / "not" / "yet")
    budget.check_disk(url, 1000)
    with pytest.raises(ValueError, match=r"needs 1\.05e\+03 TB, its disk has .* free"):
        budget.check_disk(url, 10**15)
    chunk = tmp_path / "not" / "yet" / "images.zarr" / "c" / "0"
    chunk.parent.mkdir(parents=True)
    with chunk.open("wb") as sparse:
        sparse.truncate(10**12)
    budget.check_disk(url, 10**12)  # it is there already
    budget.check_disk("memory://x", 10**15)
    price = budget.price(tiny_layout())
    budget.check_memory(price, price.peak_writer_bytes * 2, workers=2)
    with pytest.raises(ValueError, match="buffers of 3 workers need"):
        budget.check_memory(price, price.peak_writer_bytes * 2, workers=3)
