"""The store: round trips, bytes equal to zarr-python's, padding, invalid input, completion, resume."""

import pickle
import threading
import uuid
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import zarr

import storage
from storage import CorruptChunk, MissingChunk, NonFinite, Store
from storage.codec import CODECS
from support.storage_fakes import SITES, activation, contents, fill, fill_shard, label_shard, noise, zarr_store
from support.storage_fakes import tiny_layout as tiny

A = "activations.zarr/trained/down.0.0/activations"


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    """Location of an empty store, on disk and in memory."""
    return str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


@pytest.fixture
def store(url: str) -> Store:
    """An empty tiny store."""
    return Store.create(url, tiny(), durable=False)


def test_every_array_is_read_as_written(store: Store):
    fill(store)
    again = storage.open(store.url)
    assert again.layout == store.layout
    for site in SITES:
        for step in (1, 2, 3):
            expected = np.concatenate([activation(tiny(), site, step, i) for i in range(3)])
            found = again.read_activations("trained", site.name, step)
            assert found.dtype == np.float16
            np.testing.assert_array_equal(found, expected)
    xt, x0 = again.read_latents("random", 2)
    np.testing.assert_array_equal(xt[:4], noise(2, (4, 4, 2, 3), "float32"))
    np.testing.assert_array_equal(x0, -xt)
    assert again.read_images("trained").shape == (10, 8, 6, 3)
    label_shard(store, 2)
    expected = noise(2, (2, 8, 6), "float32")
    np.testing.assert_array_equal(again.read_labels("depth", [8, 9]), expected)


@pytest.mark.parametrize("samples", [[9, 0, 5, 5], [4, 5, 6, 7], [7, 6, 5, 4], [], [8, 9, 0, 1, 2, 3]])
def test_any_selection_of_samples_in_any_order(store: Store, samples: list[int]):
    fill(store, ["trained"])
    every = store.read_activations("trained", "mid.0", 2)
    np.testing.assert_array_equal(store.read_activations("trained", "mid.0", 2, samples),
                                  every[samples])  # fmt: skip


def test_reading_into_a_given_array(store: Store):
    fill(store, ["trained"])
    samples = [4, 5, 6, 7, 0, 9]
    out = np.full((2, 6, 16, 8), np.nan, np.float16)
    store.read_activations_into("trained", "down.0.0", [3, 1], samples, out)
    for part, step in zip(out, (3, 1), strict=True):
        expected = store.read_activations("trained", "down.0.0", step, samples)
        np.testing.assert_array_equal(part, expected)
    with pytest.raises(ValueError, match=r"expected `out` float16 \(1, .*got float16 \(2,"):
        store.read_activations_into("trained", "down.0.0", [3], samples, out)
    with pytest.raises(ValueError, match="got float32"):
        store.read_activations_into("trained", "down.0.0", [3, 1], samples, out.astype("f4"))


def test_reading_into_a_strided_array(store: Store):
    fill(store, ["trained"])
    wide = np.zeros((1, 10, 16, 16), np.float16)
    store.read_activations_into("trained", "down.0.0", [1], None, wide[..., ::2])
    expected = store.read_activations("trained", "down.0.0", 1)
    np.testing.assert_array_equal(wide[0, ..., ::2], expected)
    assert not wide[..., 1::2].any()


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3")
@pytest.mark.parametrize("codec", CODECS)
def test_zarr_python_reads_and_writes_the_same_bytes(tmp_path: Path, codec: str):
    """Our chunks equal those that zarr-python writes for the same array, also the padded one."""
    if codec == "pcodec":
        pytest.importorskip("pcodec")
    store = fill(Store.create(str(tmp_path / "stored"), tiny(codec=codec), durable=False))
    for shard in range(3):
        label_shard(store, shard)
    by_zarr = zarr.storage.LocalStore(tmp_path / "by_zarr")
    for path in (A, "images.zarr/random/images", "labels.zarr/depth", "latents.zarr/trained/xt"):
        stored = zarr.open_array(tmp_path / "stored" / path, mode="r")
        copy = zarr.create_array(by_zarr, name=path, shape=stored.shape, chunks=stored.chunks,
                                 dtype=stored.dtype, fill_value=stored.fill_value,
                                 serializer=stored.serializer, compressors=stored.compressors,
                                 config={"write_empty_chunks": True})  # fmt: skip
        values = stored[:]
        assert np.isfinite(values).all()
        copy[:] = values
        for key in store.array(path).keys():
            assert (tmp_path / "by_zarr" / key.path).read_bytes() == store.get(key.path)
            store.files.put(key.path, [(tmp_path / "by_zarr" / key.path).read_bytes()])
    expected = zarr.open_array(tmp_path / "by_zarr" / A, mode="r")[:, 1]
    np.testing.assert_array_equal(store.read_activations("trained", "down.0.0", 2), expected)


def test_plain_zarr_reads_an_object_store(store: Store):
    fill(store, ["trained"])
    expected = store.read_activations("trained", "down.0.0", 3)
    np.testing.assert_array_equal(zarr.open(zarr_store(store), path=A, mode="r")[:, 2], expected)
    group = zarr.open_group(zarr_store(store), path="activations.zarr", mode="r")
    np.testing.assert_array_equal(group["trained/down.0.0/activations"][:, 2], expected)
    assert group["trained/down.0.0/activations"].metadata.dimension_names == (
        "sample", "step", "token", "channel",
    )  # fmt: skip


def test_tensorstore_reads_it(tmp_path: Path):
    ts = pytest.importorskip("tensorstore")
    store = fill(Store.create(str(tmp_path), tiny(), durable=False), ["trained"])
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{tmp_path}/{A}/"}}
    found = ts.open(spec, read=True).result()[:, 1].read().result()
    np.testing.assert_array_equal(found, store.read_activations("trained", "down.0.0", 2))


@pytest.mark.parametrize("codec", ["none", "blosc-lz4"])
def test_black_images_and_empty_masks_are_written(tmp_path: Path, codec: str):
    store = Store.create(str(tmp_path), tiny(codec=codec), durable=False)
    store.write_labels("saliency", 0, np.zeros((4, 8, 6), np.uint8))
    assert store.exists("labels.zarr/saliency/c/0/0/0")
    assert not store.read_labels("saliency", [0, 1, 2, 3]).any()


def test_a_missing_chunk_is_never_read_as_the_fill_value(store: Store):
    fill(store, ["trained"])
    store.delete(f"{A}/c/1/1/0/0")
    assert store.read_activations("trained", "down.0.0", 2, [0, 9]).shape == (2, 16, 8)
    with pytest.raises(MissingChunk, match=r"down\.0\.0/activations/c/1/1/0/0: no such chunk .*--repair"):
        store.read_activations("trained", "down.0.0", 2)


@pytest.mark.parametrize("codec", ["none", "zstd"])
def test_flipped_and_missing_bytes_are_detected(url: str, codec: str):
    store = fill(Store.create(url, tiny(codec=codec), durable=False), ["trained"])
    path = f"{A}/c/0/0/0/0"
    good = store.get(path)
    for position in (0, len(good) // 2, len(good) - 1):
        bad = bytearray(good)
        bad[position] ^= 16
        store.put(path, bytes(bad))
        with pytest.raises(CorruptChunk, match=f"{path}: crc32c is"):
            store.read_activations("trained", "down.0.0", 1)
    for short in (good[:-1], good[:3], b""):
        store.put(path, short)
        with pytest.raises(CorruptChunk, match=path):
            store.read_activations("trained", "down.0.0", 1)


def test_wrong_values_are_refused_before_anything_is_written(store: Store):
    good = np.zeros((4, 16, 8), np.float16)
    before = store.list()
    with pytest.raises(ValueError, match=r"expected shape \(4, 16, 8\), got \(3, 16, 8\)"):
        store.write_activation("trained", "down.0.0", 1, 0, good[:3])
    with pytest.raises(ValueError, match=r"expected shape \(2, 16, 8\)"):
        store.write_activation("trained", "down.0.0", 1, 2, good)
    with pytest.raises(ValueError, match="float32 can't be stored as uint8"):
        store.write_labels("saliency", 0, np.zeros((4, 8, 6), np.float32))
    with pytest.raises(ValueError, match="no array .*down.9.9.*there are .*down.0.0"):
        store.write_activation("trained", "down.9.9", 1, 0, good)
    with pytest.raises(ValueError, match="step 16 is not recorded"):
        store.write_activation("trained", "down.0.0", 16, 0, good)
    with pytest.raises(ValueError, match="shard 3 is outside"):
        store.write_activation("trained", "down.0.0", 1, 3, good)
    with pytest.raises(ValueError, match="sample 10 is outside"):
        store.read_images("trained", [10])
    assert store.list() == before


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf, 1e6])
@pytest.mark.parametrize("codec", ["none", "zstd"])
@pytest.mark.parametrize("shard", [0, 2])
def test_nonfinite_values_are_refused(tmp_path: Path, bad: float, codec: str, shard: int):
    """1e6 is finite in float32 but overflows float16; the last shard is the padded one."""
    store = Store.create(str(tmp_path), tiny(codec=codec), durable=False)
    values = np.ones((len(store.layout.shard_samples(shard)), 16, 8), np.float32)
    values[-1, -1, -1] = bad
    with pytest.raises(NonFinite, match=rf"down\.0\.0/activations/c/{shard}/0/0/0: NaN or infinity"):
        store.write_activation("trained", "down.0.0", 1, shard, values)
    assert not store.exists(f"{A}/c/{shard}/0/0/0")


def test_create_reopens_only_an_equal_layout(store: Store):
    fill_shard(store, "trained", 0)
    before = contents(store)
    again = Store.create(store.url, tiny(), durable=False)
    assert again.completed("sample", "trained") == {0}
    with pytest.raises(ValueError, match="another layout .samples: stored 10, requested 12"):
        Store.create(store.url, tiny(samples=12))
    assert contents(store) == before


def test_open_refuses_a_folder_without_a_store(url: str):
    with pytest.raises(ValueError, match=r"not a store \(there is no layout\.json"):
        storage.open(url)


def test_an_interrupted_creation_is_finished(tmp_path: Path):
    complete = Store.create(str(tmp_path / "a"), tiny(), durable=False)
    part = Store.create(str(tmp_path / "b"), tiny(), durable=False)
    for path in part.list()[::2]:
        part.delete(path)
    part.delete("layout.json")
    assert contents(Store.create(part.url, tiny(), durable=False)) == contents(complete)


def test_records_are_written_last_and_name_every_chunk(store: Store):
    assert store.completed("sample", "trained") == set()
    fill_shard(store, "trained", 1)
    assert store.completed("sample", "trained") == {1}
    assert store.completed("sample", "random") == set()
    ((_, record),) = store.records.read("shards/")
    metadata = store.layout.documents()
    chunks = [path for path in store.list() if "/c/" in path and path not in metadata]
    assert sorted(record.chunks) == chunks
    for path, (size, crc) in record.chunks.items():
        data = store.get(path)
        assert (len(data), int.from_bytes(data[-4:], "little")) == (size, crc)


def test_equal_runs_give_equal_bytes(tmp_path: Path):
    """Also with another order of shards and variants, and after a retried shard."""
    first = fill(Store.create(str(tmp_path / "first"), tiny(), durable=True))
    second = Store.create(str(tmp_path / "second"), tiny(), durable=False)
    fill_shard(second, "random", 2)
    second.write_images("trained", 0, np.full((4, 8, 6, 3), 7, np.uint8))
    second.fail("sample", "trained", 0, "first attempt")
    fill(second, ["random", "trained"])
    assert contents(first) == contents(second)


@pytest.mark.parametrize("harm", ["truncate", "lengthen", "delete", "record", "misplaced"])
def test_a_damaged_shard_is_not_complete(store: Store, harm: str):
    fill(store, ["trained"])
    chunk, record = f"{A}/c/1/2/0/0", "shards/sample/trained/00001.json"
    if harm == "truncate":
        store.put(chunk, store.get(chunk)[:-1])
    elif harm == "lengthen":
        store.put(chunk, store.get(chunk) + b"x")
    elif harm == "delete":
        store.delete(chunk)
    elif harm == "record":
        store.put(record, store.get(record)[:40])
    else:
        store.put(record, store.get("shards/sample/trained/00000.json"))
    assert store.completed("sample", "trained") == {0, 2}


def test_data_are_synced_before_the_record_and_the_row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The data of a record or row must survive a power failure that the record or row survives."""
    store = Store.create(str(tmp_path), tiny())
    log: list[str] = []
    sync, put = store.files.sync, store.files.put

    def logged_sync(paths: list[str]) -> None:
        log.extend(f"sync {path}" for path in paths)
        sync(paths)

    def logged_put(path: str, parts: list, *, sync: bool = False) -> None:
        put(path, parts, sync=sync)
        log.append(f"{'durable' if sync else 'put'} {path}")

    monkeypatch.setattr(store.files, "sync", logged_sync)
    monkeypatch.setattr(store.files, "put", logged_put)
    store.write_images("trained", 0, noise(0, (4, 8, 6, 3), "uint8"))
    store.complete("sample", "trained", 0)
    store.put("probes/x.safetensors", b"weights")
    row = store.append("probes", [{"attempt": 1}])
    image = "images.zarr/trained/images/c/0/0/0/0"
    assert log == [
        f"put {image}", f"sync {image}", "durable shards/sample/trained/00000.json",
        "put probes/x.safetensors", "sync probes/x.safetensors", f"durable {row}",
    ]  # fmt: skip


def test_completion_filters_by_stage_hash(store: Store):
    shape = (4, 8, 6)
    for shard, name in ((0, "old"), (1, "new")):
        store.write_labels("saliency", shard, noise(0, shape, "uint8"))
        store.complete("label", "trained", shard, stage_hash=name)
    assert store.completed("label", "trained") == {0, 1}
    assert store.completed("label", "trained", stage_hash="new") == {1}


def test_stages_record_only_their_own_arrays(store: Store):
    """Labels belong to the label stage, and chunks of another variant to the record of that variant."""
    store.write_labels("saliency", 0, noise(0, (4, 8, 6), "uint8"))
    store.write_images("random", 0, noise(0, (4, 8, 6, 3), "uint8"))
    fill_shard(store, "trained", 0)
    assert set(store.complete("label", "trained", 0).chunks) == {"labels.zarr/saliency/c/0/0/0"}
    assert set(store.complete("sample", "random", 0).chunks) == {"images.zarr/random/images/c/0/0/0/0"}


def test_completing_nothing_is_refused(store: Store):
    with pytest.raises(ValueError, match="this process wrote no chunk of it"):
        store.complete("sample", "trained", 0)
    fill_shard(store, "trained", 0)
    with pytest.raises(ValueError, match="wrote no chunk"):
        store.complete("sample", "trained", 0)


def test_failures_hold_until_the_shard_is_done(store: Store):
    store.fail("sample", "trained", 1, "NaN at up.3.2, step 7")
    assert store.failures("sample", "trained") == {1: "NaN at up.3.2, step 7"}
    assert store.completed("sample", "trained") == set()
    fill_shard(store, "trained", 1)
    assert store.failures("sample", "trained") == {}
    assert not [path for path in store.list() if "failed" in path]


def test_a_store_can_be_pickled(tmp_path: Path):
    store = fill(Store.create(str(tmp_path), tiny(), durable=False), ["trained"])
    again = pickle.loads(pickle.dumps(store))
    assert (again.url, again.layout, again.durable) == (store.url, store.layout, False)
    assert again.completed("sample", "trained") == {0, 1, 2}


def test_several_threads_write_one_store(store: Store):
    def work(shard: int) -> None:
        fill_shard(store, "trained", shard)

    threads = [threading.Thread(target=work, args=(shard,)) for shard in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.completed("sample", "trained") == {0, 1, 2}
    reference = fill(Store.create(f"memory://{uuid.uuid4().hex}", tiny()), ["trained"])
    assert contents(store) == contents(reference)


def test_cleaning_keeps_everything_but_the_activations(store: Store):
    fill(store, ["trained"])
    before = contents(store)
    freed = store.drop_activations()
    gone = {path for path in before if path.startswith("activations.zarr/") and "/activations/c/" in path}
    assert freed == sum(len(before[path]) for path in gone)
    assert set(before) - set(store.list()) == gone
    again = storage.open(store.url)
    assert again.completed("sample", "trained") == {0, 1, 2}
    assert again.read_images("trained").shape == (10, 8, 6, 3)
    with pytest.raises(MissingChunk, match="were cleaned"):
        again.read_activations("trained", "mid.0", 1)


def test_a_failed_chunk_does_not_hang_the_reading_threads(store: Store):
    fill(store, ["trained"])
    for shard in range(3):
        store.delete(f"{A}/c/{shard}/0/0/0")
    out = np.empty((3, 10, 16, 8), np.float16)
    with pytest.raises(MissingChunk):
        store.read_activations_into("trained", "down.0.0", [1, 2, 3], None, out)
