"""Tries a few training steps with several batches, and with each way to run the network faster, for some seconds.

`choose` starts this module as a process of its own: a way that does not work on a card may hang or take the process
with it. It prints one JSON line for each candidate: `python -m probing.scenes.limited.trial NETWORK DEVICE`.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from probing.scenes.denoisers.speed import COMPILED, EAGER, GRAPHS
from probing.scenes.optimise import Schedule

UNET, DIT = "unet", "dit"
LATENTS = 64
"""random latents that steps draw from"""
ENOUGH = 0.8
"""share of the most images a second that a smaller batch needs to be preferred: it takes more steps"""
TIMED = 5
"""steps that are timed at most, after two that are not"""
STEP_S = 1.5
"""seconds of timed steps after which a candidate has been seen"""
START = 60.0
"""seconds that the process may take before the first candidate: imports and the card"""


@dataclass(frozen=True)
class Candidate:
    """A batch and a way, and how fast they are."""

    batch: int
    way: str
    images: float = 0.0
    """a second"""
    error: str = ""

    def line(self) -> str:
        """One line for the user and the card."""
        what = f"batch {self.batch:5d}, {self.way:8}"
        return f"{what} {self.error}" if self.error else f"{what} {self.images:.0f} images/s"


def candidates(device: str) -> Iterator[Candidate]:
    """What is tried, the surest first. Fusing takes a minute, so that it is seen only if there is much time."""
    ways = (EAGER, GRAPHS, COMPILED) if device == "cuda" else (EAGER,)
    batches = (256, 512, 1024, 2048) if device == "cuda" else (4, 8)
    for way in ways:
        for batch in batches[:1] if way == COMPILED else batches:
            yield Candidate(batch, way)


def best(found: list[Candidate], fallback: Candidate) -> Candidate:
    """The smallest batch that is nearly as fast as the fastest, in its fastest way."""
    works = [candidate for candidate in found if not candidate.error]
    if not works:
        return fallback
    most = max(candidate.images for candidate in works)
    fast = [candidate for candidate in works if candidate.images >= ENOUGH * most]
    batch = min(candidate.batch for candidate in fast)
    return max((c for c in fast if c.batch == batch), key=lambda c: c.images)


def choose(
    network: str, device: str, seconds: float, fallback: Candidate, progress: Callable[[str], None]
) -> tuple[Candidate, list[Candidate]]:
    """Try candidates for some seconds; returns the best one, `fallback` if none worked, and all that were tried."""
    command = [sys.executable, "-m", __name__, network, device]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
    lines: queue.Queue[str | None] = queue.Queue()

    def read() -> None:
        assert process.stdout
        for line in process.stdout:
            lines.put(line)
        lines.put(None)

    threading.Thread(target=read, daemon=True).start()
    found: list[Candidate] = []
    end = time.monotonic() + START
    try:
        while (line := lines.get(timeout=max(0.01, end - time.monotonic()))) is not None:
            if line.startswith("ready"):
                end = time.monotonic() + seconds
            elif line.startswith("{"):
                found.append(Candidate(**json.loads(line)))
                progress(f"trial: {found[-1].line()}")
    except queue.Empty:
        progress("trial: its time is over")
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    chosen = best(found, fallback)
    progress(f"trial: batch {chosen.batch}, {chosen.way}")
    return chosen, found


def measure(network: str, device: str, candidate: Candidate, folder: Path) -> Candidate:
    """Time a few steps of a training with random weights and latents."""
    from probing.scenes import text
    from probing.scenes.denoisers import diffusion, transformer

    latents, captions = torch.randn(LATENTS, 4, 16, 16), ["a large red sphere on a green floor"] * LATENTS
    schedule = Schedule(steps=1, average=0.999)
    options: dict[str, Any] = {"device": device, "way": candidate.way}
    try:
        if network == DIT:
            encoder = text.build_encoder()
            made = transformer.prepare(latents, captions, encoder, folder, schedule, candidate.batch, **options)
            loop, loss = made.loop, made.loss
        else:
            own = diffusion.prepare(latents, captions, folder, schedule, candidate.batch, **options)
            loop, loss = own.loop, own.loss
        loop.model.train()
        for _ in range(2):
            float(loop.advance(loss))  # waits for the device
        started, steps = time.perf_counter(), 0
        while steps < TIMED and time.perf_counter() - started < STEP_S:
            float(loop.advance(loss))
            steps += 1
        speed = steps * candidate.batch / (time.perf_counter() - started)
        return Candidate(candidate.batch, candidate.way, speed)
    except Exception as error:  # the next candidate may work
        return Candidate(candidate.batch, candidate.way, error=f"{type(error).__name__}: {str(error)[:120]}")


def main(words: list[str]) -> int:
    """Measure all candidates, one line for each."""
    network, device = words
    with tempfile.TemporaryDirectory() as folder:
        if device == "cuda":
            torch.zeros(1, device=device)
        print("ready", flush=True)
        for number, candidate in enumerate(candidates(device)):
            print(json.dumps(asdict(measure(network, device, candidate, Path(folder) / str(number)))), flush=True)
            if device == "cuda":
                torch.cuda.empty_cache()
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
