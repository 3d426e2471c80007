"""The benches by name, the bars of their rows, and the report that `scenesweep bench` prints."""

from __future__ import annotations

import importlib
from collections.abc import Iterable

from storage.budget import format_bytes
from sweeps.bench import machine
from sweeps.bench.paired import Row

BENCHES = {
    "capture": "sampling.bench_capture",
    "store": "store.bench_store",
    "codecs": "sampling.bench_codecs",
    "probes": "probes.bench_probes",
    "tune": "tune.bench_tune",
    "interventions": "interventions.bench_interventions",
    "cluster": "cluster.bench_cluster",
    "causal": "causal.bench_causal",
    "scale": "scale.bench_scale",
}
"""bench -> module of this package and function without required arguments; loaded on demand, as most are heavy"""
BARS = {
    "capture_over_sampling": ("most", 1.1), "write_over_tofile": ("least", 0.7), "read_over_fromfile": ("least", 0.7),
    "cell_speedup_scenes": ("least", 30), "cell_speedup_paper": ("least", 10), "grid_seconds": ("most", 60),
    "tune_over_inprocess": ("most", 1.25), "edit_speedup": ("least", 10), "cluster_over_local": ("most", 1.2),
}  # fmt: skip
"""row -> bar of its ratio on an idle machine of two cores"""


def measure(name: str) -> list[Row]:
    """Rows of one bench, see `paired.row`."""
    module, function = BENCHES[name].split(".")
    return getattr(importlib.import_module(f"sweeps.bench.{module}"), function)()


def report(name: str) -> Row:
    """The object that `bench NAME --json` prints: bench, machine, rows.

    A row has what, ratio, of, to, seconds (medians of both), pairs (all of them), and its bar with whether it is met;
    both are null if there is no bar. Rows of `causal` come with their own; those of `scale` have lists by size instead
    of a ratio.
    """
    rows = []
    for row in measure(name):
        if "bar" in row:
            rows.append(row)
            continue
        kind, bar = BARS.get(row["what"], ("", 0.0))
        met = row["ratio"] >= bar if kind == "least" else row["ratio"] <= bar
        rows.append(row | ({"bar": {kind: bar}, "met": met} if kind else {"bar": None, "met": None}))
    return {"bench": name, "machine": machine.properties(), "rows": rows}


def line(row: Row) -> str:
    """A row of a report as one line of text, or as a line for each size."""
    if "sizes" in row:
        columns = (row["sizes"], row["cpu"], row["memory"], row["reads"])
        return "\n".join(
            f"{row['what']}: {size} {row['unit']}: {cpu:.3g} s of one core, {format_bytes(memory)}, "
            + ", ".join(f"{count} {kind}" for kind, count in sorted(reads.items()))
            for size, cpu, memory, reads in zip(*columns, strict=True)
        )
    of, to = row["seconds"]
    text = f"{row['what']}: {row['ratio']:.3g} = {row['of']} / {row['to']} ({of:.3g} s, {to:.3g} s)"
    if "verdict" in row:
        text += f"; {row['verdict']}, planted {row['planted']}"
    if row["bar"] is None:
        return text
    ((kind, bar),) = row["bar"].items()
    return f"{text}; at {kind} {bar:g}: {'met' if row['met'] else 'missed'}"


def failed(rows: Iterable[Row]) -> bool:
    """Whether a row that has a right answer does not have it; a missed speed is no failure."""
    return any("planted" in row and not row["met"] for row in rows)
