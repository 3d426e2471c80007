"""Shows long work: a bar with rate and time left on a terminal, a line now and then elsewhere."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass, field
from typing import TextIO

from tqdm import tqdm

from cluster import Event, Progress, TaskFailed, WorkerLost

EVERY = 15.0
"""seconds between two lines where there is no terminal"""


@dataclass
class Meter:
    """Progress of one stage; call it with (done, total). A stage in parts counts each of them from 0."""

    name: str
    unit: str
    stream: TextIO = field(default_factory=lambda: sys.stderr)
    started: float = field(default_factory=time.monotonic)
    said: float = 0.0
    last: tuple[int, int, float] = (0, 0, 0.0)
    """done and total of the latest call, and when it came"""
    bar: tqdm | None = None

    def __getstate__(self) -> dict[str, object]:
        # Tune pickles its callbacks, and with them the meter; a terminal can't travel.
        return {k: v for k, v in self.__dict__.items() if k not in ("stream", "bar")}

    def __setstate__(self, state: dict[str, object]) -> None:
        self.__dict__.update(state, stream=sys.stderr, bar=None)

    def __call__(self, done: int, total: int) -> None:
        before, whole, when = self.last
        if whole and (done < before or total != whole):
            self.close()
            self.bar, self.started, self.said = None, when, 0.0
        self.last = (done, total, time.monotonic())
        if self.stream.isatty():
            self.bar = self.bar or tqdm(total=total, desc=self.name, unit=self.unit, file=self.stream)
            self.bar.update(done - self.bar.n)
            return
        now = time.monotonic()
        if done < total and now - self.said < EVERY:
            return
        self.said = now
        rate = done / max(now - self.started, 1e-9)
        left = f", {(total - done) / rate:.0f} s left" if done < total and rate else ""
        print(f"{self.name}: {done}/{total} {self.unit}{left}", file=self.stream, flush=True)

    def close(self) -> None:
        """Ends the bar."""
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
            again = "given up" if event.final else "tried again"
            print(f"{event.key}: {event.error} ({again})", file=self.meter.stream, flush=True)
        elif isinstance(event, WorkerLost):
            print(f"{event.worker}: lost, {event.reason}", file=self.meter.stream, flush=True)
