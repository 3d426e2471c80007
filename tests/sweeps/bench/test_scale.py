"""The bench of scale: what it counts, and how it is shown."""

from __future__ import annotations

from pathlib import Path

import storage
from sweeps.bench import scale, suite


def test_reads_of_both_kinds_of_store_are_counted(tmp_path: Path) -> None:
    for url in (str(tmp_path), "memory://bench-of-scale"):
        files = storage.backends.open_files(url)
        files.put("a/b", [b"1"])
        with scale._counted() as reads:
            files.get("a/b")
            files.size("a/b")
            files.list("a/")
        assert dict(reads) == {"get": 1, "stat": 1, "list": 1}
        with scale._counted() as reads:
            pass
        assert not reads


def test_synthetic_shards_are_complete_and_counted_once(tmp_path: Path) -> None:
    config = scale._sampled(3, str(tmp_path))
    with scale._counted() as reads:
        (row, *_), *_ = (status.rows for status in scale._status(config))  # type: ignore[attr-defined]
    assert (row.done, row.total) == (3, 3)
    # three records of each variant and of the labels, each read once; then documents of the run
    assert 9 <= reads["get"] < 30
    scale._resume(config)


def test_a_row_has_a_line_for_each_size() -> None:
    row = {"what": "status", "unit": "shards", "sizes": [1, 2], "cpu": [0.5, 1], "memory": [1e6, 2e6],
           "reads": [{"get": 3}, {"get": 6, "list": 1}], "bar": None, "met": None}  # fmt: skip
    assert suite.line(row).splitlines() == [
        "status: 1 shards: 0.5 s of one core, 1 MB, 3 get",
        "status: 2 shards: 1 s of one core, 2 MB, 6 get, 1 list",
    ]
    assert not suite.failed([row])
