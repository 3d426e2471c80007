"""The audit: every kind of damage is reported with its shard, and repair followed by a redo mends the store."""

import json
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from storage import Store, audit
from support.storage_fakes import contents, fill, fill_shard, label_shard, tiny_layout

A = "activations.zarr/trained/down.0.0"
CHUNK = f"{A}/c/1/2/0/0"
RECORD = "shards/sample/trained/00001.json"


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    """A complete store: both variants, labels, samples, a table."""
    local = request.param == "local"
    url = str(tmp_path / "out") if local else f"memory://{uuid.uuid4().hex}"
    store = fill(Store.create(url, tiny_layout(), durable=False))
    for shard in range(3):
        label_shard(store, shard)
    store.write_samples({"sample": i, "prompt": "p", "seed": i, "shard": i // 4}
                        for i in range(10))  # fmt: skip
    store.append("probes", [{"experiment": "grid", "attempt": 1}])
    return store


def flip(store: Store, path: str) -> None:
    """Flip one bit in the middle of a file."""
    data = bytearray(store.get(path))
    data[len(data) // 2] ^= 1
    store.put(path, bytes(data))


def write_nan(store: Store) -> None:
    """A valid, recorded chunk that holds a NaN."""
    values = np.ones((4, 1, 16, 8), np.float16)
    values[2, 0, 3, 4] = np.nan
    parts, size, crc = _encode(values)
    store.files.put(CHUNK, parts)
    _record(store, CHUNK, [size, f"{crc:08x}"])


def _encode(values: np.ndarray) -> tuple:
    from storage.codec import codec_for

    return codec_for("none", "float16").encode(values)


def _record(store: Store, path: str, entry: list | None) -> None:
    """Change, or with None remove, one entry of a record."""
    document = json.loads(store.get(RECORD))
    if entry is None:
        del document["chunks"][path]
    else:
        document["chunks"][path] = entry
    store.put(RECORD, json.dumps(document).encode())


def swap_sound(store: Store) -> None:
    """Another valid chunk of the right size in place of this one."""
    store.put(CHUNK, store.get(f"{A}/c/0/0/0/0"))


DAMAGE: dict[str, tuple[Callable[[Store], object], str, str, bool]] = {
    "flipped bit": (lambda s: flip(s, CHUNK), "checksum", CHUNK, True),
    "valid chunk of another site": (swap_sound, "checksum", CHUNK, True),
    "truncated": (lambda s: s.put(CHUNK, s.get(CHUNK)[:-9]), "size", CHUNK, False),
    "surplus bytes": (lambda s: s.put(CHUNK, s.get(CHUNK) + b"x"), "size", CHUNK, False),
    "missing": (lambda s: s.delete(CHUNK), "missing", CHUNK, False),
    "not finite": (write_nan, "nonfinite", CHUNK, True),
    "short record": (lambda s: s.put(RECORD, s.get(RECORD)[:50]), "bad_record", RECORD, False),
    "record of another shard": (
        lambda s: s.put(RECORD, s.get("shards/sample/trained/00000.json")),
        "bad_record", RECORD, False,
    ),
    "record with a strange chunk": (
        lambda s: _record(s, "images.zarr/x/c/0", [1, "00"]), "bad_record", RECORD, False,
    ),
    "record of another format": (
        lambda s: s.put(RECORD, s.get(RECORD).replace(b'"format": 1', b'"format": 9')),
        "bad_record", RECORD, False,
    ),
}  # fmt: skip


def test_an_undamaged_store_has_no_disagreements(store: Store):
    seen: list[tuple[int, int]] = []
    assert audit.verify(store, progress=lambda *counts: seen.append(counts)) == []
    chunks = sum("/c/" in path for path in store.list())
    assert seen == [(n, chunks) for n in range(1, chunks + 1)]


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_reported_and_repaired_by_redoing_its_shard(store: Store, damage: str):
    harm, kind, path, deep_only = DAMAGE[damage]
    before = contents(store)
    harm(store)
    found = audit.verify(store)
    assert (kind, path, "sample", "trained", 1) in [(d.kind, d.path, d.stage, d.variant, d.shard) for d in found]
    assert {d.shard for d in found if d.kind in audit.SHARD_KINDS} == {1}
    assert bool(audit.verify(store, deep=False)) == (not deep_only)
    assert audit.repair(store, found) == [("sample", "trained", 1)]
    assert store.completed("sample", "trained") == {0, 2}
    fill_shard(store, "trained", 1)
    assert contents(store) == before
    assert audit.verify(store) == []


def test_a_record_without_its_data_is_not_complete(store: Store):
    for path in store.list("images.zarr/random/c/2/"):
        store.delete(path)
    assert store.completed("sample", "random") == {0, 1}
    (found,) = audit.verify(store)
    assert (found.kind, found.variant, found.shard) == ("missing", "random", 2)


def test_a_record_that_lists_fewer_chunks_than_others_is_incomplete(store: Store):
    _record(store, CHUNK, None)
    assert [(d.kind, d.path, d.shard) for d in audit.verify(store)] == [
        ("incomplete", RECORD, 1), ("surplus", CHUNK, -1),
    ]  # fmt: skip
    assert audit.repair(store, audit.verify(store)) == [("sample", "trained", 1)]
    assert not store.exists(CHUNK)


def test_chunks_of_unfinished_shards_are_no_disagreement(store: Store):
    store.delete(RECORD)
    assert audit.verify(store) == []


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        (f"{A}/c/7/0/0/0", "surplus"),
        ("activations.zarr/trained/up.9.9/c/0/0/0/0", "surplus"),
        ("images.zarr/x.0123.partial", "partial"),
        ("results/probes/1.parquet", "table"),
    ],
)
def test_unknown_files_are_reported_and_removed(store: Store, path: str, kind: str):
    before = contents(store)
    store.put(path, b"strange")
    assert [(d.kind, d.path) for d in audit.verify(store)] == [(kind, path)]
    assert audit.repair(store, audit.verify(store)) == []
    assert contents(store) == before


@pytest.mark.parametrize("harm", ["delete", "change"])
def test_metadata_are_written_again(store: Store, harm: str):
    before, path = contents(store), f"{A}/zarr.json"
    if harm == "delete":
        store.delete(path)
    else:
        store.put(path, store.get(path).replace(b'"NaN"', b"0.0"))
    assert [(d.kind, d.path) for d in audit.verify(store)] == [("metadata", path)]
    audit.repair(store, audit.verify(store))
    assert contents(store) == before


def test_lost_prompts_are_reported_and_kept(store: Store):
    grown = store.get("samples.parquet")
    store.put("samples.parquet", grown[:-20])
    (found,) = audit.verify(store)
    assert (found.kind, found.path) == ("samples", "samples.parquet")
    assert audit.repair(store, [found]) == []
    assert store.exists("samples.parquet")


def test_cleaned_activations_are_not_missing(store: Store):
    store.drop_activations()
    assert audit.verify(store) == []
    store.delete("images.zarr/trained/c/0/0/0/0")
    assert [d.kind for d in audit.verify(store)] == ["missing"]


def test_the_padding_of_the_last_shard_is_not_a_nan(store: Store):
    """The last shard is padded with NaN, as the format prescribes."""
    last = np.frombuffer(store.get(f"{A}/c/2/0/0/0")[:-4], np.float16).reshape(4, 16, 8)
    assert np.isnan(last[2:]).all()
    assert np.isfinite(last[:2]).all()
