"""Progress of long work for the user: the stage, how far it is, and one time left for everything that is planned.

On a terminal it is a bar that moves every second, otherwise a line at least every EVERY seconds.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from cluster import Event, Progress, TaskDone, TaskFailed, Waiting, WorkerLost
from sweeps.runtime.units import about, format_duration

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 10.0
"""longest silence in seconds if the stream is no terminal"""
TICK = 1.0
"""seconds between two looks at what to show"""
PRIOR = 2.0
"""finished pieces that the expectation of a piece counts as much as"""
PRIOR_SECONDS = 10.0
"""the same for the speed of the machine"""


@dataclass
class Pace:
    """Seconds per piece of a stage, counted from its first finished piece: before it, workers load their models."""

    expected: float = 0.0
    """seconds of one piece that were expected beforehand; 0 if nothing was"""
    first: tuple[int, float] | None = None
    """pieces and time when the first ones were finished"""
    done: int = 0
    latest: float = 0.0
    """time when the latest piece was finished"""

    def update(self, done: int, now: float) -> None:
        """Take notice of the number of finished pieces. A stage in parts counts each part from 0."""
        if done < self.done:
            self.first = None
        if done != self.done:
            self.done, self.latest = done, now
        if done and self.first is None:
            self.first = (done, now)

    def seconds(self, now: float) -> float | None:
        """Seconds per piece; None before there is anything to measure."""
        if self.first is None:
            return None
        pieces, since = self.done - self.first[0], self.latest - self.first[1]
        if self.expected:
            found = (since + PRIOR * self.expected) / (pieces + PRIOR)
        elif pieces:
            found = since / pieces
        else:
            return None
        return max(found, (now - self.latest) / 2)  # a piece that is long overdue tells that they have become slower

    def left(self, total: int, now: float) -> float | None:
        """Seconds left of `total` pieces; None before there is anything to measure."""
        seconds = self.seconds(now)
        return None if seconds is None else (total - self.done) * seconds - min(seconds, now - self.latest)


@dataclass
class Step:
    """One planned stage, or one that runs."""

    title: str
    unit: str = ""
    expected: float = 0.0
    """seconds that it takes on the machine that the expectations were measured on"""
    started: float = 0.0
    total: int = 0
    failed: int = 0
    pace: Pace = field(default_factory=Pace)

    def update(self, done: int, failed: int, total: int, now: float, slowness: float) -> None:
        """Take notice of counts; with the number of pieces, the time expected of one is known."""
        if total != self.total:
            self.pace = Pace(slowness * self.expected / max(total, 1))
        self.total, self.failed = total, failed
        self.pace.update(done + failed, now)

    def left(self, now: float) -> float | None:
        """Seconds left of this stage alone; None if it cannot be said."""
        left = self.pace.left(self.total, now) if self.total else None
        if left is not None:
            return max(0.0, left)
        return max(0.0, self.expected - (now - self.started)) if self.expected else None


class Display:
    """What a command shows while it works."""

    def __init__(self, stream: TextIO | None = None, quiet: bool = False, verbose: bool = False) -> None:
        self.stream = stream or sys.stderr
        self.quiet, self.verbose = quiet, verbose
        self.planned: dict[str, float] = {}
        self.number = 0
        self.finished = (0.0, 0.0)
        """of the stages so far: seconds expected, and seconds measured for the same work"""
        self.step: Step | None = None
        self.printed = time.monotonic()
        self.bar: tqdm | None = None
        self.lock = threading.RLock()

    def say(self, line: str) -> None:
        """Print one line for the user."""
        if not self.quiet:
            self._print(line)

    def warn(self, line: str) -> None:
        """Print one line that is shown even if little is to be shown."""
        self._print(line)

    def expect(self, planned: Mapping[str, float]) -> None:
        """Take notice of the stages that follow, each with the seconds that it is expected to take (0: not known)."""
        self.planned = dict(planned)

    def skip(self, name: str) -> None:
        """Take notice that a planned stage has nothing to do."""
        self.planned.pop(name, None)

    @contextmanager
    def stage(self, name: str, title: str, unit: str = "") -> Iterator[StageObserver]:
        """Show the progress of a stage while the block runs; its events go to what is yielded."""
        if name in self.planned:
            self.number += 1
            title = f"stage {self.number}/{self.number + len(self.planned) - 1} {title}"
        now = time.monotonic()
        step = self.step = Step(title, unit, self.planned.pop(name, 0.0), now)
        stop = threading.Event()
        ticker = threading.Thread(target=self._tick, args=(stop,), name="progress", daemon=True)
        ticker.start()
        try:
            yield StageObserver(self)
        except BaseException:
            self._stop(stop, ticker)
            raise
        self._stop(stop, ticker)
        self._finish(step, time.monotonic())

    def left(self, now: float) -> float | None:
        """Seconds left of all planned stages; None before the first piece of work is finished."""
        step = self.step
        if step is None or not (self.finished[0] or step.pace.first):
            return None
        left = step.left(now)
        return None if left is None else left + sum(self.planned.values()) * self._slowness(step)

    def update(self, progress: Progress) -> None:
        """Take notice of the counts of the running stage."""
        with self.lock:
            if self.step is not None:
                now, slowness = time.monotonic(), self._slowness(None)
                self.step.update(progress.done, progress.failed, progress.total, now, slowness)

    def _measured(self, step: Step | None) -> tuple[float, float]:
        """Seconds expected and measured of all work so far, from the first finished piece of each stage."""
        expected, measured = self.finished
        if step is not None and step.pace.first and step.total:
            pieces, since = step.pace.done - step.pace.first[0], step.pace.latest - step.pace.first[1]
            if pieces:
                expected += step.expected * pieces / step.total
                measured += since
        return expected, measured

    def _slowness(self, step: Step | None) -> float:
        """How many times longer work takes here than it was expected to."""
        expected, measured = self._measured(step)
        return (measured + PRIOR_SECONDS) / (expected + PRIOR_SECONDS)

    def _finish(self, step: Step, now: float) -> None:
        self.finished, self.step = self._measured(step), None
        took = format_duration(now - step.started)
        failed = f", {step.failed} failed" if step.failed else ""
        pieces = f"{step.total} {step.unit[:-1] if step.total == 1 else step.unit} in " if step.total else ""
        self.say(f"{step.title}: {pieces}{took}{failed}")

    def _tick(self, stop: threading.Event) -> None:
        while not stop.wait(TICK):
            with self.lock:
                self._show(time.monotonic())

    def _show(self, now: float) -> None:
        """Show how far the running stage is, if it is time to."""
        step, terminal = self.step, self.stream.isatty()
        if step is None or self.quiet or not terminal and now - self.printed < EVERY - TICK:
            return
        left = self.left(now)
        rest = f"{about(left)} left" if left else format_duration(now - step.started)
        if not terminal:
            counts = f" {step.pace.done}/{step.total} {step.unit}," if step.total else ""
            self._print(f"{step.title}:{counts} {rest}")
            return
        from tqdm import tqdm

        if self.bar is None or self.bar.total != (step.total or None):
            self._clear()
            counts = " {bar:20} {n_fmt}/{total_fmt} " + step.unit if step.total else ""
            self.bar = tqdm(
                desc=step.title,
                total=step.total or None,
                initial=step.pace.done,
                bar_format="{desc}" + counts + "{postfix}",
                leave=False,
                dynamic_ncols=True,
                file=self.stream,
            )
        self.bar.n, self.bar.postfix = step.pace.done, rest
        self.bar.refresh()

    def _print(self, line: str) -> None:
        with self.lock:
            self._clear()
            print(line, file=self.stream, flush=True)
            self.printed = time.monotonic()

    def _clear(self) -> None:
        if self.bar is not None:
            self.bar.close()
            self.bar = None

    def _stop(self, stop: threading.Event, ticker: threading.Thread) -> None:
        stop.set()
        ticker.join()
        with self.lock:
            self._clear()


@dataclass
class StageObserver:
    """Turns a stage's events into progress and into one line per failure."""

    display: Display

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.display.update(event)
        elif isinstance(event, TaskDone):
            if self.display.verbose:
                self.display.say(f"{event.key}: {event.seconds:.1f} s")
        elif isinstance(event, TaskFailed):
            next_step = "given up" if event.final else "will be retried"
            show = self.display.warn if event.final else self.display.say
            show(f"{event.key}: {event.error} ({next_step})")
        elif isinstance(event, Waiting):
            self.display.say(f"waiting for a node: {event.reason}")
        elif isinstance(event, WorkerLost):
            self.display.say(f"{event.worker}: lost, {event.reason}")
