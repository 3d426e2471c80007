"""Progress of long work for the user: a bar with rate and time left on a terminal, otherwise a line now and then."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TextIO

from cluster import Event, Progress, TaskFailed, Waiting, WorkerLost

if TYPE_CHECKING:
    from tqdm import tqdm

EVERY = 15.0
"""seconds between two lines if the stream is no terminal"""


@dataclass
class Meter:
    """Progress of one stage; call it with (done, total). A stage in parts counts each part from 0."""

    name: str
    unit: str
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    started: float = field(default_factory=time.monotonic)
    printed: float = 0.0
    last: tuple[int, int, float] = (0, 0, 0.0)
    """done, total and time of the latest call"""
    bar: tqdm | None = None

    def __call__(self, done: int, total: int) -> None:
        last_done, last_total, when = self.last
        if last_total and (done < last_done or total != last_total):
            # A new part has begun: its rate must not be mixed with that of the part before.
            self.close()
            self.bar, self.started, self.printed = None, when, 0.0
        self.last = (done, total, time.monotonic())
        if self.stream.isatty():
            from tqdm import tqdm

            self.bar = self.bar or tqdm(total=total, desc=self.name, unit=self.unit, file=self.stream)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if done < total and now - self.printed < EVERY:
            return
        self.printed = now
        rate = done / max(now - self.started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if done < total and rate else ""
        print(f"{self.name}: {done}/{total} {self.unit}{left}", file=self.stream, flush=True)

    def close(self) -> None:
        """Close the bar."""
        if self.bar is not None:
            self.bar.close()


@dataclass
class StageObserver:
    """Turns a stage's events into progress and into one line per failure."""

    meter: Meter

    def __call__(self, event: Event) -> None:
        if isinstance(event, Progress):
            self.meter(event.done + event.failed, event.total)
        elif isinstance(event, TaskFailed):
            next_step = "given up" if event.final else "will be retried"
            print(f"{event.key}: {event.error} ({next_step})", file=self.meter.stream, flush=True)
        elif isinstance(event, Waiting):
            print(f"waiting for a node: {event.reason}", file=self.meter.stream, flush=True)
        elif isinstance(event, WorkerLost):
            print(f"{event.worker}: lost, {event.reason}", file=self.meter.stream, flush=True)
