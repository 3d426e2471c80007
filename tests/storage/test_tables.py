"""Tables: parts, the latest attempt, filters, schemas, samples and curation."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import storage
from storage import CorruptFile, Store
from storage.tables import KEYS, SCHEMAS, TablePart, from_parquet, latest, to_parquet
from support.storage_fakes import tiny_layout


@pytest.fixture
def store(tmp_path: Path) -> Store:
    """An empty tiny store."""
    return Store.create(str(tmp_path), tiny_layout(), durable=False)


def row(**values: object) -> dict:
    """A row of `probes`."""
    cell = {"experiment": "grid", "variant": "trained", "site": "mid.0", "step": 3,
            "task": "depth", "control": "none", "seed": 0, "stage_hash": "a"}  # fmt: skip
    return cell | {"status": "done", "attempt": 1} | values


def test_parts_are_read_in_order_of_writing(store: Store):
    paths = [store.append("probes", [row(step=n), row(step=n + 10)]) for n in (3, 1, 2)]
    assert paths == sorted(paths)
    assert len(set(paths)) == 3
    assert store.table("probes")["step"].to_pylist() == [3, 13, 1, 11, 2, 12]
    assert storage.open(store.url).table("probes").schema == SCHEMAS["probes"]


def test_the_latest_attempt_counts_in_any_order(store: Store):
    store.append("probes", [row(attempt=2, dice=0.2), row(step=4, dice=0.4)])
    store.append("probes", [row(attempt=1, dice=0.1)])
    assert store.table("probes")["dice"].to_pylist() == [0.2, 0.4]
    store.append("probes", [row(attempt=2, dice=0.3)])
    assert store.table("probes").sort_by("step")["dice"].to_pylist() == [0.3, 0.4]
    assert store.table("probes", current=False)["dice"].to_pylist() == [0.2, 0.4, 0.1, 0.3]


def test_stage_hashes_coexist_and_can_be_selected(store: Store):
    store.append("probes", [row(stage_hash="a"), row(stage_hash="b"), row(stage_hash=None)])
    assert store.table("probes").num_rows == 3
    assert store.table("probes", "b")["stage_hash"].to_pylist() == ["b"]
    assert store.table("probes", ["a", "b"])["stage_hash"].to_pylist() == ["a", "b"]
    assert store.table("probes", "c").num_rows == 0


@given(st.lists(st.tuples(st.integers(0, 2), st.sampled_from(["x", None]),
                          st.integers(1, 3) | st.none()), max_size=12))  # fmt: skip
@settings(max_examples=60, deadline=None)
def test_latest_equals_a_simple_reference(rows: list[tuple]):
    table = pa.table({
        "step": pa.array([r[0] for r in rows], pa.int64()),
        "task": pa.array([r[1] for r in rows], pa.string()),
        "attempt": pa.array([r[2] for r in rows], pa.int64()),
        "position": pa.array(range(len(rows)), pa.int64()),
    })  # fmt: skip
    best: dict[tuple, tuple[int, int]] = {}
    for position, (step, task, attempt) in enumerate(rows):
        best[step, task] = max(best.get((step, task), (-1, -1)), (attempt or 0, position))
    expected = sorted(position for _, position in best.values())
    assert latest(table, ["step", "task"])["position"].to_pylist() == expected


def test_encoded_tables_hold_the_same_values(store: Store):
    for site, attempt in (("mid.0", 1), ("up.3.2", 1), ("mid.0", 2)):
        keys = {"site": site, "attempt": attempt, "task": "depth", "step": 3, "stage_hash": None}
        store.append("images", [keys | {"sample": n, "rmse": n / attempt} for n in range(3)])
    plain, encoded = (store.table("images", encoded=encoded) for encoded in (False, True))
    assert plain.num_rows == 6
    assert encoded.to_pylist() == plain.to_pylist()
    assert encoded.schema.field("site").type == pa.dictionary(pa.int16(), pa.string())
    assert encoded.nbytes < plain.nbytes
    assert store.table("images", "a", encoded=True).num_rows == 0


def test_a_table_of_millions_of_rows_is_not_kept_nor_copied(store: Store):
    store.append("images", [{"site": "mid.0", "sample": n, "attempt": 1} for n in range(3)])
    store.append("epochs", [{"site": "mid.0", "epoch": n, "attempt": 1} for n in range(3)])
    assert store.table("epochs") is store.table("epochs")
    table = store.table("images")
    assert latest(table, KEYS["images"]) is table  # no row is there twice
    (part,) = store.parts("images").values()
    assert isinstance(part, TablePart)
    assert list(part.origins) == [(None, None)]
    allocated = pa.total_allocated_bytes()
    del table
    assert pa.total_allocated_bytes() < allocated


def test_keys_are_columns():
    for name, columns in KEYS.items():
        assert set(columns) <= set(SCHEMAS[name].names)
        assert {"attempt", "stage_hash"} <= set(SCHEMAS[name].names)


def test_wrong_rows_are_refused_before_writing(store: Store):
    with pytest.raises(ValueError, match="no column 'dicee'; did you mean 'dice'"):
        store.append("probes", [row(dicee=1.0)])
    with pytest.raises(ValueError, match="a value does not fit its column"):
        store.append("probes", [row(step="three")])
    with pytest.raises(ValueError, match="no rows"):
        store.append("probes", [])
    with pytest.raises(ValueError, match="table 'probe': there are probes, images"):
        store.append("probe", [row()])
    with pytest.raises(ValueError, match="table '../x'"):
        store.table("../x")
    assert store.list("results/") == []


def test_absent_columns_are_null_and_unknown_ones_in_a_part_ignored(store: Store):
    store.append("probes", [row()])
    assert store.table("probes")["dice"].to_pylist() == [None]
    future = pa.table({"site": ["mid.0"], "attempt": [1], "novelty": [5]})
    pq.write_table(future, Path(store.url) / "results/probes/9.parquet")
    table = store.table("probes", current=False)
    assert table.schema == SCHEMAS["probes"]
    assert table["step"].to_pylist() == [3, None]


def test_no_damage_of_a_part_gives_other_values(store: Store):
    """Every bit of the file counts: that of its pages, whose checksums Parquet has, and that of its metadata."""
    path = store.append("images", [{"sample": i, "rmse": 1.051 + i, "attempt": 1} for i in range(50)])
    data = store.get(path)
    rng = np.random.default_rng(0)
    for bit in rng.choice(8 * len(data), 500, replace=False):
        changed = bytearray(data)
        changed[bit // 8] ^= 1 << bit % 8
        with pytest.raises(CorruptFile, match="its name says"):
            from_parquet(bytes(changed), path)
    for length in rng.choice(len(data), 50, replace=False):
        with pytest.raises(CorruptFile):
            from_parquet(data[:length], path)


def test_damaged_pages_and_truncated_files_are_found_without_a_recorded_checksum():
    """As in files that other programs copied under another name."""
    data = to_parquet(pa.table({"rmse": np.random.default_rng(0).normal(size=2000)}))
    pages = len(data) - 4 - 4 - int.from_bytes(data[-8:-4], "little")
    for place in range(100, pages, 997):
        changed = bytearray(data)
        changed[place] ^= 1
        with pytest.raises(CorruptFile):
            from_parquet(bytes(changed), "copy.parquet")
    for length in (0, 3, 11, 100, len(data) - 1):
        with pytest.raises(CorruptFile, match="no whole Parquet file"):
            from_parquet(data[:length], "copy.parquet")


def test_an_unreadable_part_is_reported(store: Store):
    path = store.append("epochs", [{"epoch": 1, "attempt": 1}])
    store.put(path, b"not parquet")
    with pytest.raises(ValueError, match=f"{path}: its crc32c is .*, its name says"):
        storage.open(store.url).table("epochs")


def samples(count: int, **changes: object) -> list[dict]:
    """Rows of samples.parquet for shards of four."""
    return [{"sample": i, "prompt": f"p{i}", "seed": i, "shard": i // 4} | changes
            for i in range(count)]  # fmt: skip


def test_samples_are_written_once(store: Store):
    store.write_samples(reversed(samples(10)))
    assert store.samples()["sample"].to_pylist() == list(range(10))
    before = store.get("samples.parquet")
    store.write_samples(samples(10))
    assert store.get("samples.parquet") == before
    with pytest.raises(ValueError, match="prompts or seeds differ"):
        store.write_samples(samples(10, prompt="other"))
    assert store.get("samples.parquet") == before


def test_samples_must_fit_the_layout(store: Store):
    for rows in (samples(9), samples(11), samples(10, shard=0), samples(10)[1:] + samples(1) * 2):
        with pytest.raises(ValueError, match=r"samples must be 0\.\.9, each once, .* i // 4"):
            store.write_samples(rows)


def test_curation_may_be_replaced(store: Store):
    store.write_curation([{"sample": 1, "keep": True}, {"sample": 0, "keep": False,
                                                       "reason": "black"}])  # fmt: skip
    assert store.curation()["sample"].to_pylist() == [0, 1]
    store.write_curation([{"sample": 0, "keep": True, "split": "train"}])
    assert store.curation().to_pylist() == [{"sample": 0, "keep": True, "reason": None, "split": "train"}]
    with pytest.raises(ValueError, match="more than one row"):
        store.write_curation([{"sample": 0}, {"sample": 0}])
