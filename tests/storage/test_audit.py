"""The audit: every kind of damage is reported with its shard, and repair followed by a redo mends the store."""

import io
import json
import uuid
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

import storage
from storage import Store, audit
from storage.tables import to_parquet
from support.storage_fakes import contents, fill, fill_shard, label_shard, tiny_layout

A = "activations.zarr/trained/down.0.0/activations"
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
        lambda s: _record(s, "images.zarr/x/images/c/0", [1, "00"]), "bad_record", RECORD, False,
    ),
    "record of another format": (
        lambda s: s.put(RECORD, s.get(RECORD).replace(b'"format": 1', b'"format": 9')),
        "bad_record", RECORD, False,
    ),
}  # fmt: skip


def test_an_undamaged_store_has_no_disagreements(store: Store):
    seen: list[tuple[int, int]] = []
    assert audit.verify(store, progress=lambda *counts: seen.append(counts)) == []
    chunks = sum(len(list(spec.keys())) for spec in store.layout.arrays.values())
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
    for path in store.list("images.zarr/random/images/c/2/"):
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
        ("activations.zarr/trained/up.9.9/activations/c/0/0/0/0", "surplus"),
        ("images.zarr/x.0123.partial", "partial"),
        ("results/probes/1.parquet", "table"),
    ],
)
def test_unknown_files_are_reported_and_removed(store: Store, path: str, kind: str):
    before = contents(store)
    store.put(path, b"strange")
    assert [(d.kind, d.path) for d in audit.verify(store)] == [(kind, path)]
    assert audit.repair(store, audit.verify(store)) == []
    assert audit.verify(store) == []
    aside = {f"set_aside/{path}": b"strange"} if kind == "table" else {}
    assert contents(store) == before | aside


@pytest.mark.parametrize("name", [".DS_Store", "._chunk", ".nfs000000012", "Thumbs.db"])
def test_files_that_systems_leave_behind_are_no_damage(store: Store, name: str):
    add_results(store)
    for folder in ("results", "shards", "shards/sample/trained", A, "results/probes", "probes/trained"):
        store.put(f"{folder}/{name}", b"left behind")
    assert audit.verify(Store.open(store.url)) == []
    assert store.completed("sample", "trained")
    assert store.table("probes").num_rows


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
    assert (found.kind, found.path) == ("document", "samples.parquet")
    assert audit.repair(store, [found]) == []
    assert store.exists("samples.parquet")


WEIGHTS = "probes/trained/mid.0/03.depth.none.0.safetensors"


def add_results(store: Store, weights: bytes = b"weights", **columns: object) -> dict[str, str]:
    """A probe with its weights, images and epochs, written as the probe stage does; returns the paths."""
    row = {
        "experiment": "grid",
        "site": "mid.0",
        "step": 3,
        "task": "depth",
        "attempt": 1,
        "stage_hash": "a",
        **columns,
    }
    store.put(WEIGHTS, weights)
    images = store.append("images", [row | {"sample": 0}])
    epochs = store.append("epochs", [row | {"epoch": 1}])
    probes = store.append("probes", [row], [WEIGHTS, images, epochs])
    return {"weights": WEIGHTS, "images": images, "epochs": epochs, "probes": probes}


@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
@pytest.mark.parametrize("name", ["weights", "images", "epochs", "probes"])
def test_rows_that_rest_on_a_damaged_file_are_made_again(store: Store, name: str, harm: str):
    """Repair sets the file aside, and the part whose rows mark the probe as fitted: without them it is missing."""
    paths = add_results(store)
    other = store.append("probes", [{"experiment": "grid", "step": 4, "stage_hash": "a"}])
    assert audit.verify(store) == []
    path, data = paths[name], store.get(paths[name])
    if harm == "flip":
        flip(store, path)
    elif harm == "truncate":
        store.put(path, data[:-9])
    else:
        store.delete(path)
    found = audit.verify(Store.open(store.url))
    if (name, harm) == ("probes", "delete"):
        assert found == []  # nothing says that the probe is fitted
        return
    assert [(d.kind, d.path) for d in found] == [("file" if name == "weights" or harm == "delete" else "table", path)]
    assert audit.repair(store, found) == []
    assert audit.verify(store) == []
    assert paths["probes"] not in store.list("results/")
    assert other in store.list("results/")
    aside = {path, paths["probes"]} if harm != "delete" else {paths["probes"]}
    assert set(store.list("set_aside/")) == {f"set_aside/{one}" for one in aside}
    add_results(store)
    assert audit.verify(store) == []


def test_only_files_of_the_rows_that_count_are_compared(store: Store):
    """A probe's file is replaced when it is fitted with other settings: that is no damage, unless one goes back."""
    first = add_results(store)
    second = add_results(store, b"other settings", stage_hash="b")
    assert audit.verify(store) == audit.verify(store, hashes={"b"}) == []
    found = audit.verify(store, hashes={"a"})
    assert [(d.kind, d.path) for d in found] == [("file", WEIGHTS)]
    audit.repair(store, found, {"a"})
    parts = store.list("results/probes/")
    assert first["probes"] not in parts
    assert second["probes"] in parts


def test_a_repair_keeps_rows_that_nothing_could_make_again(store: Store):
    """Once the activations are removed on purpose, probes can't be fitted again."""
    paths = add_results(store)
    store.drop_activations()
    flip(store, WEIGHTS)
    audit.repair(store, audit.verify(store))
    assert audit.verify(store) == []
    assert paths["probes"] in store.list("results/probes/")


def test_a_row_can_only_rest_on_what_was_written_before(store: Store):
    with pytest.raises(KeyError):
        store.append("probes", [{"step": 1}], ["probes/unknown"])


DOCUMENTS = ["manifest.json", "curation.json", "experiments.json", "failed/probe.json", "curation/safety/00000.json"]


@pytest.mark.parametrize("path", [*DOCUMENTS, "shards/sample/trained/00001.failed.json"])
@pytest.mark.parametrize("harm", ["flip", "garble", "list"])
def test_a_damaged_document_is_reported(store: Store, path: str, harm: str):
    """A flipped letter inside a string leaves valid JSON, which its own checksum reveals."""
    store.put("config.yaml", b"a: 1")
    store.put_document("manifest.json", {"stages": {"sample": "0123"}})
    store.put_document(path, {"key": "value"})
    assert audit.verify(store) == []
    data = store.get(path)
    store.put(path, {"flip": data.replace(b"value", b"valve"), "garble": data[: len(data) // 2], "list": b"[]"}[harm])
    (found,) = audit.verify(store)
    assert (found.kind, found.path) == ("document", path)
    assert store.readable_document(path) == {}
    assert store.failures("sample", "trained") == {}
    audit.repair(store, [found])
    assert store.exists(path) == (path in audit.REWRITTEN)


@pytest.mark.parametrize("path", ["config.yaml", "prompts.json", "layout.json", "curation/decisions.csv"])
@pytest.mark.parametrize("harm", ["flip", "delete"])
def test_files_that_the_manifest_records_are_compared(store: Store, path: str, harm: str):
    store.put("config.yaml", b"name: one")
    if not store.exists(path):
        store.put(path, b"[1, 2, 3]")
    store.put_document("manifest.json", {}, store.checksums(["config.yaml", path]))
    assert audit.verify(store) == []
    opened = Store.open(store.url)
    store.delete(path) if harm == "delete" else flip(store, path)
    assert [(d.kind, d.path) for d in audit.verify(opened)] == [("document", path)]
    with pytest.raises((storage.CorruptFile, FileNotFoundError)):
        store.get(path, recorded_in="manifest.json")


@pytest.mark.parametrize("path", ["samples.parquet", "curation.parquet"])
@pytest.mark.parametrize("harm", ["flip", "truncate"])
def test_damaged_samples_and_curation_are_reported_and_written_again(store: Store, path: str, harm: str):
    samples = [{"sample": i, "prompt": "p", "seed": i, "shard": i // 4} for i in range(10)]
    store.put("config.yaml", b"")
    store.put_document("experiments.json", {})
    store.put_document("manifest.json", {}, store.checksums(["samples.parquet"]))
    store.write_curation([{"sample": 0, "keep": True}], {"stage_hash": "a"})
    before = contents(store)
    flip(store, path) if harm == "flip" else store.put(path, store.get(path)[:-9])
    assert [(d.kind, d.path) for d in audit.verify(store)] == [("document", path)]
    read = store.samples if path == "samples.parquet" else store.curation
    with pytest.raises(storage.CorruptFile, match=path):
        read()
    store.write_samples(samples)
    store.write_curation([{"sample": 0, "keep": True}])
    assert audit.verify(store) == []
    assert contents(store) == before


def test_a_damaged_layout_is_written_again_if_the_arrays_agree_with_the_one_requested(store: Store):
    before = contents(store)
    for data in (b"garbage", store.get("layout.json").replace(b'"shard": 4', b'"shard": 5')):
        store.put("layout.json", data)
        assert Store.create(store.url, tiny_layout(), durable=False).layout == tiny_layout()
        assert contents(store) == before
    store.put("layout.json", b"garbage")
    with pytest.raises(storage.CorruptFile, match="layout.json can't be read"):
        Store.create(store.url, tiny_layout(samples=9))


def test_files_of_earlier_versions_without_checksums_are_read(store: Store):
    add_results(store)
    for path in store.list("results/"):
        prefix, first, second, _ = path.replace(".parquet", "-x").split("-")
        data = to_parquet(pq.read_table(io.BytesIO(store.get(path))).replace_schema_metadata())
        store.delete(path)
        store.put(f"{prefix}-{first}.parquet", data)
    store.put("config.yaml", b"")
    store.put("manifest.json", b'{"stages": {}}')
    store.put("shards/sample/trained/00001.failed.json", b'{"format": 1, "shard": 1, "reason": "r"}')
    store.delete("shards/sample/trained/00001.json")
    assert audit.verify(store) == []
    assert store.table("images").num_rows == 1
    assert store.document("manifest.json") == {"stages": {}}
    assert store.failures("sample", "trained") == {1: "r"}


def test_cleaned_activations_are_not_missing(store: Store):
    store.drop_activations()
    assert audit.verify(store) == []
    store.delete("images.zarr/trained/images/c/0/0/0/0")
    assert [d.kind for d in audit.verify(store)] == ["missing"]


def test_the_padding_of_the_last_shard_is_not_a_nan(store: Store):
    """The last shard is padded with NaN, as the format prescribes."""
    last = np.frombuffer(store.get(f"{A}/c/2/0/0/0")[:-4], np.float16).reshape(4, 16, 8)
    assert np.isnan(last[2:]).all()
    assert np.isfinite(last[:2]).all()
