"""How the driver's work grows with the size of a run: processor time, peak memory, and reads of the store.

Everything is synthetic, written with the store's own code. Each measurement runs in a process of its own, at a tenth, a
third and the whole of the full size. A shard of the local outputs is a symbolic link to one shard of every array, so
that a million samples need no disk; the object store is one in memory.
"""

from __future__ import annotations

import csv
import itertools
import multiprocessing
import os
import resource
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

import storage
from probing.scenes.grammar import WORDS
from storage import Layout, SiteShape, Store
from storage.backends.files import LocalFiles
from storage.records import Record
from sweeps.bench.paired import Row
from sweeps.config import load as configuration
from sweeps.config.schema import Config

PARTS = (10, 3, 1)
SHARD = 8
SETTINGS = [
    "sampling.steps=2", f"sampling.shard={SHARD}", "sampling.sites=[up.3.2]", "sampling.variants=[trained,random]",
    "sweep.steps=[1]", "sweep.controls=[none]", "sweep.control_sites=[]", "experiments.names=[]",
    "interventions.tasks=[]", "tracking.mode=disabled", "ray.address=none",
]  # fmt: skip
"""seven chunks in each record of a sampled shard"""
PAGE = 1000
"""entries in one answer of an object store to a request for a list"""


@dataclass(frozen=True)
class Measured:
    """The cost of one command."""

    cpu: float
    """seconds of processor time"""
    memory: int
    """peak bytes of the process beyond those before the command"""
    reads: dict[str, int]
    """calls by kind: files read, stat calls or HEAD requests, entries listed or requests for a list"""


@dataclass(frozen=True)
class Subject:
    """Something that grows: how it is set up, and the command that is measured."""

    what: str
    unit: str
    full: int
    prepare: Callable[[int, str], Any]
    command: Callable[[Any], object]


def bench_scale(full: float = 1.0) -> list[Row]:
    """One row for each subject, with lists by size; `full` is the share of the full sizes that is the largest."""
    return [_row(subject, [max(1, round(full * subject.full / part)) for part in PARTS]) for subject in SUBJECTS]


def _row(subject: Subject, sizes: list[int]) -> Row:
    found = [measure(subject.what, size) for size in sizes]
    return {
        "what": subject.what,
        "unit": subject.unit,
        "sizes": sizes,
        "cpu": [one.cpu for one in found],
        "memory": [one.memory for one in found],
        "reads": [one.reads for one in found],
        "bar": None,
        "met": None,
    }


def measure(what: str, size: int) -> Measured:
    """One subject at one size, in a new process, whose memory holds nothing else."""
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        return pool.apply(_measure, (what, size))


def _measure(what: str, size: int) -> Measured:
    subject = next(subject for subject in SUBJECTS if subject.what == what)
    with tempfile.TemporaryDirectory(prefix="scenesweep-scale-") as folder:
        prepared = subject.prepare(size, folder)
        with _counted() as reads:
            before, started = _peak(reset=True), time.process_time()
            subject.command(prepared)
            cpu = time.process_time() - started
        return Measured(cpu, _peak() - before, dict(reads))


def _peak(reset: bool = False) -> int:
    """Peak bytes of this process; with `reset`, from now on (where the system can)."""
    if reset:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@contextmanager
def _counted() -> Iterator[Counter[str]]:
    """Count what is read of stores: on disks through the system's calls, of object stores by requests."""
    from storage.backends.objects import obstore

    counts: Counter[str] = Counter()
    originals: dict[tuple[Any, str], Any] = {
        (os, "stat"): os.stat,
        (os, "scandir"): os.scandir,
        (LocalFiles, "get"): LocalFiles.get,
    }
    originals |= {(obstore, name): getattr(obstore, name) for name in ("get", "head", "list")}

    def counting(kind: str, original: Callable) -> Callable:
        def counted(*args: Any, **options: Any) -> Any:
            counts[kind] += 1
            return original(*args, **options)

        return counted

    def listed(*args: Any, **options: Any) -> Iterator[Any]:
        counts["list"] += 1
        seen = 0
        for batch in originals[obstore, "list"](*args, **options):
            pages = max(1, -(-(seen + len(batch)) // PAGE))
            counts["list"] += pages - max(1, -(-seen // PAGE))
            seen += len(batch)
            yield batch

    kinds = {"stat": "stat", "scandir": "list", "get": "get", "head": "stat"}
    for place, name in originals:
        setattr(place, name, listed if name == "list" else counting(kinds[name], originals[place, name]))
    try:
        yield counts
    finally:
        for (place, name), original in originals.items():
            setattr(place, name, original)


# -- subjects


def _config(folder: str, *more: str) -> Config:
    return configuration.load("scenes", [*SETTINGS, f"output={folder}/run", *more])


def _prompts(count: int, folder: str) -> Config:
    """Settings of a run over a file of distinct prompts, with seeds."""
    words = itertools.islice(itertools.product(WORDS, repeat=5), count)
    with open(f"{folder}/prompts.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["prompt", "seed"])
        writer.writerows((" ".join(text), seed) for seed, text in enumerate(words))
    return _config(folder, f"prompts.source={folder}/prompts.csv", "prompts.count=0")


def _plan(config: Config) -> object:
    from sweeps.planning import table

    return table.describe(config)


def _sampled(shards: int, folder: str) -> Config:
    """A run whose samples are sampled and labelled."""
    from sweeps.planning import checks
    from sweeps.runtime import experiments, inputs, run

    config = _prompts(shards * SHARD, folder)
    start = checks.check(config, ("sample", "label"))
    begun = run.begin(config, start.model_info, start.prompts)
    inputs.record(begun)
    experiments.write_hashes(begun)
    _records(begun.store, begun.hashes.sample, begun.hashes.label)
    return config


def _in_memory(shards: int, _folder: str) -> Store:
    """The same records in an object store, of arrays with small chunks."""
    layout = Layout(shards * SHARD, SHARD, ("trained", "random"), (SiteShape("up.3.2", 1, 1),), steps=2, image=(1, 1),
                    recorded_steps=(1,), latent=(1, 1, 1))  # fmt: skip
    store = Store.create(f"memory://{os.getpid()}", layout)
    _records(store, "sample", "label")
    return store


def _records(store: Store, sample: str, label: str) -> None:
    """Records of all shards, and their chunks: those of the first shard again and again."""
    labels = {store.layout.labels(task) for task in store.layout.tasks}
    works = [("sample", variant, sample) for variant in store.layout.variants] + [("label", "trained", label)]
    for stage, variant, stage_hash in works:
        own = [s for p, s in store.layout.arrays.items() if (p in labels) == (stage == "label")]
        arrays = [s for s in own if stage == "label" or s.path.split("/")[1] == variant]
        for spec in arrays:
            for step in spec.steps or (None,):
                store.chunks.write(spec, spec.key(0, step), np.zeros((SHARD, *spec.inner), spec.dtype))
        chunks = {}
        for key in (spec.key(0, step) for spec in arrays for step in spec.steps or (None,)):
            data = store.files.get(key.path)
            chunks[key.path] = (len(data), int.from_bytes(data[-4:], "little"))
        for shard in range(store.layout.shards):
            own_chunks = {path.replace("/c/0", f"/c/{shard}", 1): one for path, one in chunks.items()}
            if isinstance(store.files, LocalFiles):
                for spec in arrays if shard else ():
                    os.symlink("0", f"{store.url}/{spec.path}/c/{shard}")
            else:
                for path, source in zip(own_chunks, chunks, strict=True):
                    store.files.put(path, [store.files.get(source)])
            store.records.write(Record(stage, variant, shard, own_chunks, stage_hash), sync=False)


def _status(config: Config) -> object:
    from sweeps.runtime import live_status, run
    from sweeps.stages.all import STAGES

    current = run.reopen(run.stored_config(config.output))
    live = live_status.read(current.store)
    return [stage.status(current, live) for stage in STAGES]


def _resume(config: Config) -> object:
    from sweeps import pipeline

    LocalFiles.free = lambda self: 1 << 60  # type: ignore[method-assign]  # links take no space, arrays would
    result = pipeline.execute(config, ("sample", "label"))
    assert not result.counts, result.counts
    return result


def _completed(store: Store) -> object:
    """What `status` and a resumed run ask of a store."""
    assert store.exists(storage.keys.LAYOUT)
    for _ in range(2):
        for variant in store.layout.variants:
            assert len(store.completed("sample", variant)) == store.layout.shards
        assert len(store.completed("label", "trained")) == store.layout.shards
    return store.failures("sample", "trained")


def _verify(store: Store) -> object:
    found = storage.audit.verify(store)
    assert not found
    return found


def _broken(records: int, _folder: str) -> Store:
    """A store whose records can't be read."""
    store = _in_memory(records, _folder)
    for path in store.list("shards/sample/trained/"):
        store.files.put(path, [b"{"])
    return store


def _find_broken(store: Store) -> object:
    found = storage.audit.verify(store, deep=False)
    assert sum(item.kind == "bad_record" for item in found) == store.layout.shards
    return found


IMAGES = 10_000
"""test images of each probe"""


def _results(probes: int, folder: str) -> Config:
    """A run with rows of probes, each with a row for each of 10,000 images, in a part for each site."""
    from storage.tables import IMAGES as SCHEMA
    from sweeps.planning import checks
    from sweeps.runtime import run

    config = _config(folder, f"prompts.count={SHARD}", "curation.train=2", "curation.val=2", "curation.test=2",
                     "sampling.sites=[all]")  # fmt: skip
    start = checks.check(config, ("sample",))
    begun = run.begin(config, start.model_info, start.prompts)
    rng = np.random.default_rng(0)
    scores = {"saliency": ("dice", "oracle_dice", "ap")}
    scores["depth"] = tuple(name for name in SCHEMA.names if name in (
        "rmse", "oracle_rmse", "rmse_aligned", "spearman", "pearson", "rmse_object", "rmse_background"))  # fmt: skip
    grid = itertools.product(("trained", "random"), begun.sites, range(1, 16), ("saliency", "depth"))
    chosen = list(itertools.islice(grid, probes))
    for _, members in itertools.groupby(chosen, key=lambda probe: probe[:2]):
        tables, rows = [], []
        for variant, site, step, task in members:
            common = {"experiment": "grid", "variant": variant, "site": site.name, "step": step, "task": task,
                      "control": "none", "seed": 0, "attempt": 1, "stage_hash": begun.hashes.probe}  # fmt: skip
            columns: dict[str, Any] = {name: pa.repeat(value, IMAGES) for name, value in common.items()}
            columns["sample"] = pa.array(range(IMAGES))
            columns |= {name: pa.array(rng.random(IMAGES)) for name in scores[task]}
            absent = {f.name: pa.nulls(IMAGES, f.type) for f in SCHEMA if f.name not in columns}
            tables.append(pa.table(columns | absent).select(SCHEMA.names).cast(SCHEMA))
            rows.append(common | {"status": "done", "n_test": IMAGES, "train_loss": 1.0, "val_loss": 1.0,
                                  "seconds": 0.1, "tokens": site.tokens, "channels": site.channels})  # fmt: skip
        _append(begun.store, pa.concat_tables(tables))
        begun.store.append("probes", rows)
        begun.store.append("epochs", [
            {**{k: v for k, v in row.items() if k in storage.tables.EPOCHS.names}, "epoch": epoch}
            for row in rows for epoch in range(1, 31)
        ])  # fmt: skip
    return config


def _append(store: Store, table: pa.Table) -> None:
    from storage.codec import crc32c
    from storage.tables import to_parquet

    data = to_parquet(table)
    store.files.put(f"{storage.keys.part_prefix('images')}{time.time_ns():020d}-{0:08x}-{crc32c(data):08x}.parquet",
                    [data])  # fmt: skip


def _scores(config: Config) -> object:
    """What the report reads of the results before it draws."""
    from sweeps.analysis import scores, tables
    from sweeps.config.load import to_dict

    found = scores.collect(tables.load(storage.open(config.output), to_dict(config)))
    assert found
    return found


def _mirror(config: Config) -> object:
    from pathlib import Path

    from sweeps.analysis import tables
    from sweeps.config.load import to_dict
    from sweeps.tracking import mirror, runs

    store = storage.open(config.output)
    run = tables.load(store, to_dict(config))
    folder = Path(config.output) / "wandb"
    folder.mkdir()
    planned = runs.plan(run, "cell")
    writer, marker = mirror.Writer(run, folder), mirror.Marker(folder)
    with mirror.own_environment(folder):
        for one in planned:
            marker.put(one.id, one.digest, writer.write(one))
    marker.save()
    return marker


SUBJECTS = (
    Subject("plan of prompts in a file", "prompts", 1_000_000, _prompts, _plan),
    Subject("status, on a disk", "shards", 125_000, _sampled, _status),
    Subject("resume, on a disk", "shards", 125_000, _sampled, _resume),
    Subject("status, in an object store", "shards", 125_000, _in_memory, _completed),
    Subject("verify, in an object store", "shards", 125_000, _in_memory, _verify),
    Subject("verify of unreadable records", "records", 20_000, _broken, _find_broken),
    Subject("scores of 10,000 images", "probes", 960, _results, _scores),
    Subject("W&B, a run for each probe", "runs", 960, _results, _mirror),
)


def main() -> None:
    """`python -m sweeps.bench.scale WHAT SIZE...` measures one subject at any sizes."""
    for size in map(int, sys.argv[2:]):
        one = measure(sys.argv[1], size)
        print(sys.argv[1], size, f"{one.cpu:.2f} s", f"{one.memory / 1e6:.0f} MB", one.reads, flush=True)


if __name__ == "__main__":
    main()
