"""What the scene explorer shows: test images with the clean estimate and the probes' predictions at every step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load

from storage import Store
from sweeps.analysis import summary
from sweeps.analysis.floors import in_split
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData, Site
from sweeps.report.gallery.probes import PredictionMemory, map_limits, probe_units
from sweeps.runtime.layout import EMERGENCE_FOLDER

IMAGES = 6
"""images that can be chosen"""
LARGEST = 16
"""patches along the longer side of a map; finer maps are averaged"""
READ = 5e8
"""bytes of activations that are read at most"""
SHOWN = 6e5
"""values of maps on the page at most"""


@dataclass(frozen=True)
class Explored:
    """One test image."""

    sample: int
    caption: str
    image: np.ndarray
    """uint8 (H, W, 3), finished"""
    estimates: dict[int, np.ndarray]
    """by step: uint8 (H, W, 3), the decoded clean estimate; empty if none was decoded"""
    labels: dict[str, np.ndarray]
    """by task: float (H, W), in the probe's units"""
    limits: dict[str, tuple[float, float]]
    """by task: ends of the colour scale"""
    maps: dict[tuple[str, str, int], np.ndarray]
    """by task, site and step: float32 (h, w)"""


@dataclass(frozen=True)
class Exploration:
    """Images, sites and steps among which a reader can choose."""

    sites: tuple[Site, ...]
    steps: tuple[int, ...]
    best: dict[str, Site]
    """by task"""
    images: tuple[Explored, ...]


def exploration(
    run: RunData, store: Store, scores: Mapping[str, Scores], memory: PredictionMemory
) -> Exploration | None:
    """The first images with decoded estimates, or else the first test images; None without predictions.

    A large model is shown with fewer images and sites, so that neither reading nor the page gets out of hand.
    """
    best = {t: s.sites[i] for t, s in scores.items() if (i := summary.best_site(s)) is not None}
    if run.reader is None or not best or "trained" not in run.variants:
        return None
    first = next(iter(scores.values()))
    stored = _estimates(store)
    samples = (list(stored) or in_split(run, "test"))[:IMAGES]
    samples = [i for i in samples if i in first.samples]
    samples, sites = _affordable(run, store.layout.shard, samples, list(best.values()), first.steps)
    images = run.reader.images("trained", samples) if samples else None
    labels = {t: run.reader.labels(t, samples) for t in best} if samples else {}
    if images is None or any(v is None for v in labels.values()):
        return None
    units = {t: probe_units(run, t, v) for t, v in labels.items() if v is not None}
    maps: dict[tuple[str, str, int], np.ndarray] = {}
    for site in sites:
        for step in first.steps:
            for task in best:
                found = memory.predict("trained", site, step, task, samples)
                if found is not None:
                    maps[task, site.name, step] = _coarse(found)
    if not maps:
        return None
    explored = [
        Explored(
            sample,
            run.captions.get(sample, ""),
            images[i],
            stored.get(sample, {}),
            {t: v[i] for t, v in units.items()},
            {t: map_limits(t, v[i]) for t, v in units.items()},
            {key: values[i] for key, values in maps.items()},
        )
        for i, sample in enumerate(samples)
    ]
    shown = tuple(s for s in sites if any(name == s.name for _, name, _ in maps))
    steps = tuple(s for s in first.steps if any(step == s for _, _, step in maps))
    return Exploration(shown, steps, {t: s for t, s in best.items() if s in shown}, tuple(explored))


def _estimates(store: Store) -> dict[int, dict[int, np.ndarray]]:
    """Decoded clean estimates by sample and step; unreadable files are skipped."""
    found = {}
    for path in sorted(store.list(f"{EMERGENCE_FOLDER}/")):
        try:
            tensors = load(store.get(path))
            sample = int(path.rpartition("/")[2].partition(".")[0])
            found[sample] = dict(zip(tensors["steps"].tolist(), tensors["x0.image"], strict=True))
        except (KeyError, ValueError, SafetensorError):
            continue
    return found


def _affordable(
    run: RunData, shard: int, samples: list[int], best: list[Site], steps: Sequence[int]
) -> tuple[list[int], list[Site]]:
    """As many of the samples and sites as can be read and shown; the best sites first, then in order of execution."""
    best = list(dict.fromkeys(best))
    sites: list[Site] = []
    read = shown = 0.0
    shards = len({i // shard for i in samples})
    for site in (*best, *(s for s in run.sites if s not in best)):
        rows, columns = _coarse_grid(site.grid)
        read += 2.0 * site.tokens * site.channels * shard * shards * len(steps)
        shown += 2.0 * rows * columns * len(steps) * len(samples)
        if sites and (read > READ or shown > SHOWN):
            break
        sites.append(site)
    order = {s.name: i for i, s in enumerate(run.sites)}
    return samples, sorted(sites, key=lambda s: order.get(s.name, 0))


def _coarse_grid(grid: tuple[int, int]) -> tuple[int, int]:
    factor = max(1, -(-max(grid) // LARGEST))
    return -(-grid[0] // factor), -(-grid[1] // factor)


def _coarse(maps: np.ndarray) -> np.ndarray:
    """Maps (n, h, w) averaged over blocks so that no side is longer than LARGEST."""
    factor = max(1, -(-max(maps.shape[1:]) // LARGEST))
    if factor == 1:
        return maps
    rows, columns = (np.arange(0, side, factor) for side in maps.shape[1:])
    sums = np.add.reduceat(np.add.reduceat(maps, rows, axis=1), columns, axis=2)
    counts = np.add.reduceat(np.add.reduceat(np.ones_like(maps[:1]), rows, axis=1), columns, axis=2)
    return sums / counts
