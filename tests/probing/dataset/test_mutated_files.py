"""Prompt files with one thing wrong at a time: read as they are, or refused with one line."""

from __future__ import annotations

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from probing.dataset.prompts import Prompt, PromptConfig, read

VALUES = st.one_of(
    st.none(), st.booleans(), st.integers(-(2**70), 2**70), st.floats(), st.text(max_size=30), st.just("x" * 10_000),
    st.just("\ud800"), st.just("\x00"), st.lists(st.integers(), max_size=2),
    st.dictionaries(st.text(), st.integers(), max_size=1),
)  # fmt: skip
QUICK = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
COLUMNS = ("prompt", "seed", "id", "punsafe", "aesthetic")


def outcome(path: Path) -> tuple[Prompt, ...]:
    """The prompts of a file; none if it is refused with one line that names it."""
    message, found = "", ()
    try:
        found = read(PromptConfig(source=str(path), max_unsafe=0.5, min_score=1.0)).prompts
    except ValueError as error:
        message = str(error)
    assert "\n" not in message
    assert len(message) < 1000
    assert path.name in message or found
    pa.table({"prompt": [p.text for p in found], "seed": pa.array([p.seed for p in found], pa.int64())})
    json.dumps([p.name for p in found]).encode()
    return found


ROW = {"prompt": "a red box", "seed": 7, "id": "n", "punsafe": 0.1, "aesthetic": 5.0}


@QUICK
@given(column=st.sampled_from(COLUMNS), value=VALUES)
def test_a_value_of_json_lines(tmp_path, column, value):
    path = tmp_path / "p.jsonl"
    path.write_text(json.dumps(ROW) + "\n" + json.dumps(ROW | {"seed": 8} | {column: value}) + "\n")
    found = outcome(path)
    assert not found or found[0].text == "a red box"


@QUICK
@given(column=st.sampled_from(COLUMNS), value=VALUES, cut=st.integers(0, 60))
def test_a_value_of_a_csv(tmp_path, column, value, cut):
    path = tmp_path / "p.csv"
    row = ROW | {column: value}
    text = (
        ",".join(ROW) + "\n" + ",".join(str(v) for v in row.values()) + "\n" + ",".join(map(str, ROW.values())) + "\n"
    )
    path.write_text(text, encoding="utf-8", errors="surrogatepass")
    outcome(path)
    path.write_bytes(path.read_bytes()[: -cut or None])
    outcome(path)


@QUICK
@given(column=st.sampled_from(COLUMNS), value=VALUES)
def test_a_column_of_a_parquet_file(tmp_path, column, value):
    path = tmp_path / "p.parquet"
    try:
        table = pa.table({name: [value if name == column else v] for name, v in ROW.items()})
        pq.write_table(table, path)
    except (pa.ArrowException, OverflowError, UnicodeEncodeError, NotImplementedError):
        return  # not a Parquet file that can exist
    outcome(path)


@QUICK
@given(data=st.binary(max_size=200), suffix=st.sampled_from([".csv", ".jsonl", ".txt", ".parquet"]))
def test_any_bytes(tmp_path, data, suffix):
    path = tmp_path / f"p{suffix}"
    path.write_bytes(data)
    outcome(path)
