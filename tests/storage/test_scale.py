"""What is asked of a store grows with its shards and no faster: reads are counted at n and 2n shards."""

from __future__ import annotations

import os
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import obstore
import pytest

import storage
from storage import Store, audit
from storage.backends import files
from storage.backends.files import LocalFiles
from support.storage_fakes import fill_shard, tiny_layout


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> Counter[str]:
    """Counts of reads: stat calls and files on a disk; requests by kind, and the files listed, in an object store."""
    counts: Counter[str] = Counter()

    def counted(place: Any, name: str) -> None:
        original = getattr(place, name)

        def call(*args: Any, **options: Any) -> Any:
            counts[name] += 1
            return original(*args, **options)

        monkeypatch.setattr(place, name, call)

    def listing(*args: Any, **options: Any) -> Iterator[Any]:
        counts["list"] += 1
        for batch in listed(*args, **options):
            counts["listed"] += len(batch)
            yield batch

    listed = obstore.list
    counted(os, "stat")
    counted(LocalFiles, "get")
    counted(files, "_walk")
    counted(obstore, "get")
    counted(obstore, "head")
    monkeypatch.setattr(obstore, "list", listing)
    return counts


def sampled(url: str, shards: int) -> Store:
    """A store of one variant whose shards are complete."""
    layout = tiny_layout(samples=shards, shard=1, variants=("trained",), tasks={"depth": "float32"})
    store = Store.create(url, layout, durable=False)
    for shard in range(shards):
        fill_shard(store, "trained", shard)
    return store


@pytest.fixture(params=["local", "memory"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return str(tmp_path / "out") if request.param == "local" else f"memory://{uuid.uuid4().hex}"


def cost(reads: Counter[str], action: Callable[[], object]) -> Counter[str]:
    reads.clear()
    action()
    return Counter(reads)


def test_one_file_is_asked_for_by_one_request(url: str, reads: Counter[str]):
    store = sampled(url, 3)
    assert cost(reads, lambda: store.exists("layout.json") and not store.exists("nothing")).total() == 2
    assert cost(reads, lambda: store.holds("shards/"))["listed"] <= 3


def test_records_are_read_once_by_a_command(url: str, reads: Counter[str]):
    store = sampled(url, 20)
    reopened = storage.open(url)
    first = cost(reads, lambda: reopened.completed("sample", "trained"))
    assert first["get"] == 20
    again = cost(reads, lambda: reopened.completed("sample", "trained", stage_hash="other"))
    assert again["get"] == 0
    assert again["listed"] <= 20
    assert again["stat"] + again["head"] <= 1  # whether the store was cleaned
    store.delete("shards/sample/trained/00003.json")
    fill_shard(store, "trained", 7)
    renewed = cost(reads, lambda: reopened.completed("sample", "trained"))
    assert renewed["get"] == 1  # the one that was written since
    assert reopened.completed("sample", "trained") == set(range(20)) - {3}


@pytest.mark.parametrize("act", ["completed", "any", "verify"])
def test_reads_grow_with_the_shards(url: str, reads: Counter[str], act: str):
    actions: dict[str, Callable[[Store], object]] = {
        "completed": lambda store: store.completed("sample", "trained"),
        "any": lambda store: store.any_completed("sample", "trained"),
        "verify": audit.verify,
    }
    counts = []
    for shards in (20, 40):
        sampled(f"{url}/{shards}", shards)
        counts.append(cost(reads, lambda n=shards: actions[act](storage.open(f"{url}/{n}"))))  # type: ignore[misc]
    few, many = counts
    for kind in few:
        assert many[kind] <= 2 * few[kind] + 2, kind
    if act == "any":
        assert many["stat"] == few["stat"]
        assert many["get"] == few["get"]


def test_the_start_of_a_run_looks_at_no_array(url: str, reads: Counter[str]):
    counts = []
    for shards in (5, 10):
        store = sampled(f"{url}/{shards}", shards)
        counts.append(cost(reads, lambda s=store: (s.remove_partial_files(), s.exists("cleaned.json"))))  # type: ignore[misc]
    assert counts[0] == counts[1]


def test_unreadable_records_are_named_in_one_pass(url: str, monkeypatch: pytest.MonkeyPatch):
    """The shard of each is found without building the paths of all shards for each."""
    built: Counter[int] = Counter()
    record_path = storage.keys.record_path

    def counted(*args: Any) -> str:
        built[0] += 1
        return record_path(*args)

    store = sampled(url, 20)
    for path in store.list("shards/"):
        store.put(path, b"{")
    monkeypatch.setattr(storage.keys, "record_path", counted)
    found = [item for item in audit.verify(store, deep=False) if item.kind == "bad_record"]
    assert [item.shard for item in found] == list(range(20))
    assert built[0] <= 20
