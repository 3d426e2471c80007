"""Runs the bench: a worker process that measures, and this one that ends it in time (imports no torch)."""

from __future__ import annotations

import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from cluster.process import sigterm_stops
from probing.diffusion.devices import GPU_NODES
from sweeps.bench.gpu.pieces import EXIT_AGAIN, GRACE, PIECES
from sweeps.bench.gpu.record import DONE, FAILED, SKIPPED, Record
from sweeps.bench.gpu.scale import NARROW, PAPER
from sweeps.planning.rates import STABLE_DIFFUSION

POLL = 0.2
"""seconds between two looks at the worker"""
IN_MEMORY = Path("/dev/shm")
START = 180.0
"""seconds that a worker may take until it begins a piece: reading torch for the first time can take a minute"""


def run(out: Path, device: str, minutes: float, narrow: bool, say: Callable[[str], None]) -> Record:
    """Measure for at most `minutes`, and return the file's content.

    The file is complete at every moment, so that a kill loses the number at work alone; SIGTERM ends it as Ctrl-C does.
    Raises ValueError for a number of minutes that is none, or a card that this machine does not have.
    """
    started = time.time()
    if not 0 < minutes < math.inf:
        raise ValueError(f"--minutes {minutes:g}: must be more than 0")
    if device == "cuda" and not any(True for pattern in GPU_NODES for _ in Path("/dev").glob(pattern)):
        raise ValueError("--device cuda: this machine has no GPU; rehearse with --device cpu --narrow")
    if device == "cpu" and not narrow:
        raise ValueError("--device cpu: the full networks would take hours; add --narrow")
    out.parent.mkdir(parents=True, exist_ok=True)
    about = {"model": STABLE_DIFFUSION, "steps": (NARROW if narrow else PAPER).steps}
    record = Record.begin(out, device=device, narrow=narrow, minutes=minutes, **about)
    end = started + 60 * minutes
    shown: set[str] = set()

    def begun(name: str) -> None:
        if name not in shown:
            shown.add(name)
            say(f"{name}: {next(piece.what for piece in PIECES if piece.name == name)}")

    with sigterm_stops(), _folders(out.parent) as (disk, memory):
        while len(record.pieces) < len(PIECES) and time.time() < end - GRACE:
            worker = [sys.executable, "-m", "sweeps.bench.gpu.worker", str(out), str(disk), memory, str(end - GRACE)]
            code = _watch(subprocess.Popen(worker, start_new_session=True), out, end, begun)
            record = Record.read(out)
            if record.running:
                record.end(record.running, FAILED, _reason(code))
            elif code not in (0, EXIT_AGAIN):
                break  # it does not even start, so the next one would not either
    for piece in PIECES:
        if piece.name not in record.pieces:
            record.end(piece.name, SKIPPED, "no time was left, or the worker did not start")
    record.document["seconds"] = round(time.time() - started, 1)
    record.write()
    return record


@contextmanager
def _folders(beside: Path) -> Iterator[tuple[Path, str]]:
    """An empty folder on the output's disk and one in memory, if there is such a place; both are deleted."""
    disk, memory = Path(tempfile.mkdtemp(prefix=".bench-", dir=beside)), ""
    try:
        if os.access(IN_MEMORY, os.W_OK):
            memory = tempfile.mkdtemp(prefix="bench-", dir=IN_MEMORY)
        yield disk, memory
    finally:
        for folder in filter(None, (str(disk), memory)):
            shutil.rmtree(folder, ignore_errors=True)


def _watch(worker: subprocess.Popen[bytes], out: Path, end: float, begun: Callable[[str], None]) -> int:
    """Wait for a worker and kill it if a piece outlasts its time; returns its exit code, negative for a signal."""
    idle = time.time() + START
    try:
        while (code := worker.poll()) is None:
            time.sleep(POLL)
            record = Record.read(out)
            for name, piece in record.pieces.items():
                if piece["state"] != SKIPPED:
                    begun(name)
            if record.running:
                deadline = record.pieces[record.running]["deadline"]
                idle, late = deadline + START, time.time() > deadline + GRACE
            else:
                late = time.time() > idle
            if late or time.time() > end:
                break
        return code if code is not None else -signal.SIGKILL
    finally:
        if worker.poll() is None:
            os.killpg(worker.pid, signal.SIGKILL)
            worker.wait()


def _reason(code: int) -> str:
    if code == -signal.SIGKILL:
        return "stopped: its time was over"
    return f"the worker ended with signal {-code}" if code < 0 else f"the worker ended with code {code}"


def lines(record: Record) -> list[str]:
    """What was measured, as text."""
    found = [f"{_card(record)}, {record.document['seconds']:.0f} s"]
    for name, piece in record.pieces.items():
        peak = f", {piece['peak_card_gib']:.1f} GiB on the card" if piece.get("peak_card_gib") else ""
        took = f" in {piece['seconds']:.0f} s{peak}" if "seconds" in piece else ""
        found.append(f"{name}: {piece['state']}{took}{': ' + piece['error'] if piece.get('error') else ''}")
        found += [f"  {_row(row)}" for row in piece["rows"]]
        found += [f"  {label}: {_text(one['value'])} {one['unit']}" for label, one in piece["numbers"].items()]
    return found


def _card(record: Record) -> str:
    machine = record.document["machine"]
    card = machine.get("card") or machine.get("processor") or "no machine answered"
    return f"{card}{', a narrow network: a rehearsal, no measurement' if record.document['narrow'] else ''}"


def _row(row: dict[str, Any]) -> str:
    of, to = row["seconds"]
    bar = f"; at most {row['bar']['most']:g}: {'met' if row['met'] else 'missed'}" if row["bar"] else ""
    return f"{row['what']}: {row['ratio']:.3g} = {row['of']} / {row['to']} ({of:.3g} s, {to:.3g} s){bar}"


def _text(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.4g}"


def complete(record: Record) -> bool:
    """Whether every piece was done."""
    return all(piece["state"] == DONE for piece in record.pieces.values())
