"""The sweep in W&B while it runs: a run of the driver, and the runs of probes as soon as their results are there.

Two daemon threads do all of it, so that W&B can neither stop nor delay the sweep: stages put events into a queue, which
never waits. Whatever is not written when the sweep ends, `mirror` writes from the tables.
"""

from __future__ import annotations

import hashlib
import logging
import queue
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import storage
from cluster import Event, Observer, Progress, TaskDone, TaskFailed
from sweeps.analysis import tables
from sweeps.analysis.tables import Json
from sweeps.config.load import to_dict
from sweeps.runtime.grid import probe_specs
from sweeps.runtime.run import Run
from sweeps.tracking.mirror import LIMIT_S, Marker, Writer, own_environment, send
from sweeps.tracking.place import local_folder
from sweeps.tracking.runs import DRIVER, plan

if TYPE_CHECKING:
    import wandb

PERIOD_S = 10.0
"""seconds between two rows of the driver's run; W&B writes what it has to the disk every 15 s"""
CELLS_S = 30.0
"""seconds between two looks for finished probes"""
WINDOW_S = 120.0
"""seconds over which rates are means"""
CLOSE_S = 20.0
"""seconds that the end of a sweep waits for either thread"""
log = logging.getLogger(__name__)


@dataclass
class StageCounts:
    """What a stage has done so far, as its events tell; thread-safe, because each event replaces whole values."""

    name: str
    progress: Progress = field(default_factory=lambda: Progress(0, 0, 0, 0))
    failures: int = 0
    """failed attempts, also those that were repeated"""
    finished: deque[tuple[float, int]] = field(default_factory=lambda: deque(maxlen=10_000))
    """times and sample counts of tasks"""
    started: float = field(default_factory=time.monotonic)

    def take(self, event: Event) -> None:
        """Count one event."""
        if isinstance(event, Progress):
            self.progress = event
        elif isinstance(event, TaskDone):
            self.finished.append((time.monotonic(), int(event.result.get("samples", 0))))
        elif isinstance(event, TaskFailed):
            self.failures += 1

    def row(self, now: float) -> dict[str, float]:
        """The metrics of this stage by name."""
        done, failed, running = self.progress.done, self.progress.failed, self.progress.running
        waiting = max(0, self.progress.total - done - failed - running)
        counts: dict[str, float] = {
            "done": done,
            "failed": failed,
            "running": running,
            "queue": waiting,
            "failures": self.failures,
        }
        recent = [samples for when, samples in self.finished if when > now - WINDOW_S]
        if any(recent):
            counts["samples_per_second"] = sum(recent) / max(1e-9, min(WINDOW_S, now - self.started))
        return {f"{self.name}/{key}": value for key, value in counts.items()}


class Live:
    """The two threads of a sweep. Methods that the sweep calls never wait and never raise."""

    def __init__(self, run: Run) -> None:
        self.run, self.config = run, to_dict(run.config)
        self.mode = run.config.tracking.mode
        self.folder = local_folder(run.store.url)
        started = time.strftime("%Y-%m-%d %H:%M:%S")
        self.id = hashlib.sha256(f"{run.store.url}\0{started}\0{time.time_ns()}".encode()).hexdigest()[:16]
        self.title = f"{run.config.name} driver {started}"
        self.events: queue.SimpleQueue[tuple[str, Event] | None] = queue.SimpleQueue()
        self.counts: dict[str, StageCounts] = {}
        self.stop = threading.Event()
        self.failed = False
        self.threads = [
            threading.Thread(target=self._guarded, args=(work,), name=work.__name__.strip("_"), daemon=True)
            for work in (self._driver, self._cells)
        ]

    def start(self) -> None:
        """Start both threads."""
        for thread in self.threads:
            thread.start()

    def observer(self, stage: str) -> Observer:
        """What passes the events of a stage on."""
        return lambda event: self.events.put((stage, event))

    def close(self, failed: bool) -> None:
        """Let both threads finish what they do; one that W&B holds up is left behind."""
        self.failed = failed
        self.stop.set()
        self.events.put(None)
        for thread in reversed(self.threads):  # the driver's run ends last
            thread.join(CLOSE_S)

    def _guarded(self, work: Callable[[], None]) -> None:
        try:
            work()
        except Exception as error:  # W&B is a mirror: nothing it does may stop a sweep
            log.warning("W&B: no live view (%s); the results are mirrored at the end", _one_line(error))

    def _driver(self) -> None:
        """Log the counts of all stages now and then until the sweep ends."""
        import wandb

        store = storage.open(self.run.store.url)
        data = tables.load(store, self.config)
        writer = Writer(data, self.folder)
        about: dict[str, Any] = {"started": time.strftime("%Y-%m-%dT%H:%M:%S%z"), "sampled": self.run.hashes.sample}
        config = {"sweep": self.config, "manifest": data.manifest, **data.addresses, **about}
        run = self._open(writer, config)
        try:
            logged, ended = 0.0, False
            active: set[str] = set()
            while not ended:
                with suppress(queue.Empty):
                    item = self.events.get(timeout=PERIOD_S)
                    ended = item is None
                    if item is not None:
                        active.add(item[0])
                        self._take(run, wandb, *item)
                now = time.monotonic()
                if active and (ended or now - logged >= PERIOD_S):
                    logged, row = now, {"cells/finished": store.table("probes")["status"].to_pylist().count("done")}
                    for stage in active:
                        row |= self.counts[stage].row(now)
                    active.clear()
                    run.log(row)
            run.summary["failed"] = self.failed
        finally:
            run.finish(exit_code=int(self.failed))
        if run.offline:
            self.threads[1].join(CLOSE_S)  # it may be about to write the same file
            marker = Marker(self.folder)
            marker.put(self.id, DRIVER, writer.directory(self.id))
            marker.save()

    def _open(self, writer: Writer, config: Json) -> wandb.Run:
        """The driver's run: live on the server if it can be reached, else in the folder, to be sent later."""
        arguments = (self.id, self.title, DRIVER, (DRIVER,), config)
        self.folder.mkdir(parents=True, exist_ok=True)
        if self.mode == "online":
            try:
                return writer.open(*arguments, mode="online")
            except Exception as error:
                log.warning("W&B: the driver's run is not live (%s); it is sent at the end", _one_line(error))
        return writer.open(*arguments)

    def _take(self, run: wandb.Run, library: Any, stage: str, event: Event) -> None:
        self.counts.setdefault(stage, StageCounts(stage)).take(event)
        if isinstance(event, TaskFailed) and event.final:
            # W&B sends at most one alert of a title within a minute
            title = f"{self.run.config.name}: {stage} failed"
            run.alert(title, f"{event.key}: {event.error}", library.AlertLevel.ERROR)

    def _cells(self) -> None:
        """Write the runs whose probes are all there now and then, and send them."""
        store = storage.open(self.run.store.url)
        parts: Sequence[str] = ()
        while not self.stop.wait(CELLS_S):
            found = store.list("results/probes/")
            if found == parts:
                continue
            parts = found
            data = tables.load(store, self.config)
            kind = self.run.config.tracking.runs
            complete = [p for p in plan(data, kind) if kind == "cell" or p.probes == self._requested(p.config)]
            marker, writer = Marker(self.folder), Writer(data, self.folder)
            for planned in complete:
                if not marker.has(planned.id, planned.digest) and not self.stop.is_set():
                    marker.put(planned.id, planned.digest, writer.write(planned))
            marker.save()
            if self.mode == "online" and not self.stop.is_set():
                send(marker, [p.id for p in complete if p.id in marker.runs], LIMIT_S)

    def _requested(self, config: Mapping[str, object]) -> int:
        """Number of probes of a variant and site, as many as its run shows."""
        sweep = self.run.config.sweep
        specs = probe_specs(sweep, [str(config["variant"])], self.run.sites)
        return sum(spec.site == config["site"] and spec.seed == min(sweep.seeds) for spec in specs)


def _one_line(error: Exception) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:300]


@contextmanager
def live(run: Run, failed: Mapping[str, str]) -> Iterator[Callable[[str], list[Observer]]]:
    """Show a sweep in W&B while the block runs; yields what gives a stage its further observers.

    failed: what has failed, filled inside the block. A sweep that ends with failures, or with an error, is shown as
    failed.
    """
    with own_environment(local_folder(run.store.url), warn=False):
        watch = Live(run)
        watch.start()
        try:
            yield lambda stage: [watch.observer(stage)]
        except BaseException:
            watch.close(failed=True)
            raise
        watch.close(failed=bool(failed))
