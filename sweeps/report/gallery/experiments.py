"""Pictures of the experiments beside the grid: emergence strips, depth with and without smoothness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow.compute as pc
from safetensors import SafetensorError
from safetensors.numpy import load

from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData, Site
from sweeps.report.gallery.probes import SHOWN_STEPS, PredictionMemory, probe_units
from sweeps.runtime.layout import EMERGENCE, EMERGENCE_FOLDER, LATENT_KINDS

SMOOTH_SHOWN = 3


@dataclass(frozen=True)
class Strip:
    """One row of maps of one task by step."""

    task: str
    name: str
    maps: dict[int, np.ndarray]
    """float (h, w) by step"""
    label: np.ndarray
    """float (H, W): label of the finished image, in the same units"""
    low: float
    high: float


@dataclass(frozen=True)
class Emerging:
    """One test image while it is painted: decoded, labelled and probed at each step shown."""

    sample: int
    caption: str
    finished: np.ndarray
    images: dict[str, dict[int, np.ndarray]]
    """by kind (`xt`, `x0`) and step: uint8 (H, W, 3)"""
    strips: tuple[Strip, ...]


@dataclass(frozen=True)
class Smoothed:
    """One test image's depth, label and probes without and with the smoothness loss."""

    sample: int
    image: np.ndarray
    site: Site
    step: int
    label: np.ndarray
    without: np.ndarray
    smooth: np.ndarray


def limits(task: str, label: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale of a map."""
    if task == "saliency":
        return 0.0, 1.0
    low, high = np.percentile(label, (1, 99))
    return float(low), float(high)


def emerging(run: RunData, store: Any, scores: dict[str, Scores], memory: PredictionMemory) -> list[Emerging]:
    """The samples whose partial images were kept; unreadable files are left out."""
    images = run.table("images")
    rows = None if images is None else images.filter(pc.equal(images["experiment"], EMERGENCE))
    current = set() if rows is None else set(rows["sample"].to_pylist())
    found = []
    for path in store.list(f"{EMERGENCE_FOLDER}/"):
        try:
            sample = int(path.rpartition("/")[2].partition(".")[0])
            if sample in current:
                found.append(_emerging(run, scores, memory, sample, load(store.get(path))))
        except (KeyError, ValueError, SafetensorError):
            continue
    return [one for one in found if one is not None]


def _emerging(
    run: RunData, scores: dict[str, Scores], memory: PredictionMemory, sample: int, kept: dict[str, np.ndarray]
) -> Emerging | None:
    assert run.reader is not None
    finished = run.reader.images("trained", [sample])
    if finished is None:
        return None
    places = _places(kept)
    images = {k: {s: kept[f"{k}.image"][i] for s, i in places.items()} for k in LATENT_KINDS}
    strips: list[Strip] = []
    for task, found in scores.items():
        strips += _strips(run, found, memory, task, sample, kept)
    return Emerging(sample, run.captions.get(sample, ""), finished[0], images, tuple(strips))


def _places(kept: dict[str, np.ndarray]) -> dict[int, int]:
    """Where the steps that are shown stand along the first axis."""
    steps = kept["steps"].tolist()
    return {step: steps.index(step) for step in SHOWN_STEPS if step in steps}


def _strips(
    run: RunData, scores: Scores, memory: PredictionMemory, task: str, sample: int, kept: dict[str, np.ndarray]
) -> list[Strip]:
    assert run.reader is not None
    final, best = run.reader.labels(task, [sample]), summary.best_site(scores)
    if final is None or best is None:
        return []
    label = probe_units(run, task, final)[0]
    site = scores.sites[best]
    ends = limits(task, label)
    steps = [s for s in SHOWN_STEPS if s in scores.steps]
    read = {s: memory.predict("trained", site, s, task, [sample]) for s in steps}
    probed = {s: maps[0] for s, maps in read.items() if maps is not None}
    rows = [Strip(task, f"probe at {site.name}", probed, label, *ends)]
    for kind, words in (("x0", "labeller on the clean estimate"), ("xt", "labeller on the noisy latent")):
        maps = probe_units(run, task, kept[f"{kind}.{task}"].astype(np.float32))
        rows.append(Strip(task, words, {s: maps[i] for s, i in _places(kept).items()}, label, *ends))
    return [row for row in rows if row.maps]


def smoothed(run: RunData, families: dict[str, dict[str, Scores]], memory: PredictionMemory) -> list[Smoothed]:
    """The first test images at the coarse site where smoothness costs most, as in figure 13."""
    found = families.get("smoothness", {}).get("depth")
    if found is None or run.reader is None or not found.per_image:
        return []
    site = _coarse(found.sites)
    step, samples = found.steps[-1], found.samples[:SMOOTH_SHOWN].tolist()
    without = memory.predict("trained", site, step, "depth", samples)
    smooth = memory.predict("trained", site, step, "depth", samples, "smoothness")
    images, labels = run.reader.images("trained", samples), run.reader.labels("depth", samples)
    if without is None or smooth is None or images is None or labels is None:
        return []
    units = probe_units(run, "depth", labels)
    return [
        Smoothed(sample, images[i], site, step, units[i], without[i], smooth[i]) for i, sample in enumerate(samples)
    ]


def _coarse(sites: Sequence[Site]) -> Site:
    """The decoder's first site, where there is one: the coarsest that still draws a scene."""
    decoder = [s for s in sites if s.side == "decoder"]
    return (decoder or list(sites))[0]
