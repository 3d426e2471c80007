"""The process that measures: `python -m sweeps.bench.gpu.worker FILE DISK MEMORY END`, as `driver` starts it."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys
import threading
import time
import traceback
from contextlib import suppress
from pathlib import Path

import torch

from sweeps.bench import machine
from sweeps.bench.gpu.bench import Bench
from sweeps.bench.gpu.pieces import EXIT_AGAIN, PIECES, Piece
from sweeps.bench.gpu.record import DONE, FAILED, SKIPPED, Record


def main(words: list[str]) -> int:
    """Do the pieces that have no state yet; returns the exit code."""
    threading.Thread(target=end_with, args=(os.getppid(),), daemon=True).start()
    path, disk, memory, end = words
    record = Record.read(Path(path))
    device = torch.device(record.document["device"])
    record.document["machine"] = describe(device)
    bench = Bench(record, device, record.document["narrow"], Path(disk), Path(memory) if memory else None)
    for piece in PIECES:
        if piece.name in record.pieces:
            continue
        left = float(end) - time.time()
        if left < piece.least:
            record.end(piece.name, SKIPPED, f"{left:.0f} s are left, and it needs at least {piece.least:.0f}")
        elif not measure(bench, piece, min(piece.limit, left)):
            return EXIT_AGAIN
    return 0


def measure(bench: Bench, piece: Piece, limit: float) -> bool:
    """Do one piece; returns whether the process can go on. What fails is noted, and is no error."""
    record, started = bench.record, time.monotonic()
    bench.piece, bench.until = piece.name, started + limit
    record.start(piece.name, time.time() + limit)
    module, function = piece.function.split(".")
    state, error = DONE, ""
    try:
        bench.reset_peak()
        getattr(importlib.import_module(f"sweeps.bench.gpu.{module}"), function)(*piece.arguments, bench)
    except Exception as failure:  # the other pieces do not depend on this one
        traceback.print_exc()
        state, error = FAILED, " ".join(f"{type(failure).__name__}: {failure}".split())[:500]
    try:
        bench.free()
        bench.synchronise()
        peak = bench.peak()
    except RuntimeError as lost:  # after an illegal access the card answers no process that has seen it
        error = error or f"the card does not answer: {' '.join(str(lost).split())[:200]}"
        record.end(piece.name, FAILED, error, seconds=time.monotonic() - started)
        return False
    record.end(piece.name, state, error, seconds=time.monotonic() - started, **peak)
    return True


def describe(device: torch.device) -> dict[str, object]:
    """The machine, its card and the driver."""
    found = machine.properties()
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        found |= {"card": card.name, "card_gib": round(card.total_memory / 2**30, 1), "cuda": torch.version.cuda}
        with suppress(OSError, subprocess.SubprocessError):
            query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
            ran = subprocess.run(query, capture_output=True, text=True, timeout=10, check=True)
            found["driver"] = ran.stdout.strip().splitlines()[0]
    return found


def end_with(parent: int) -> None:
    """End this process when the one that started it has ended."""
    while os.getppid() == parent:
        time.sleep(1)
    os._exit(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
