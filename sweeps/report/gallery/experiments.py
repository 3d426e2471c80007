"""Pictures of the experiments beside the grid: emergence strips, depth with and without smoothness."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import pyarrow.compute as pc
from safetensors import SafetensorError
from safetensors.numpy import load

from storage import Store
from sweeps.analysis import summary
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData, Site
from sweeps.analysis.vocabulary import LABELLER_TITLES
from sweeps.report.gallery.probes import STRIP, PredictionMemory, map_limits, pick, probe_units
from sweeps.runtime.layout import EMERGENCE, EMERGENCE_FOLDER, LATENT_KINDS

EMERGING_SHOWN = 2
"""images whose emergence is shown"""
SMOOTH_SHOWN = 3
"""images shown with and without the smoothness loss"""


class MapRow(NamedTuple):
    """Maps of one task by step."""

    task: str
    name: str
    maps: dict[int, np.ndarray]
    """float (h, w) by step"""
    label: np.ndarray
    """float (H, W): label of the finished image, in the same units"""
    limits: tuple[float, float]
    """ends of the colour scale"""


@dataclass(frozen=True)
class Emerging:
    """One test image during denoising: decoded, labelled and probed at each step shown."""

    sample: int
    caption: str
    finished: np.ndarray
    """uint8 (H, W, 3)"""
    images: dict[str, dict[int, np.ndarray]]
    """by kind (`xt`, `x0`) and step: uint8 (H, W, 3)"""
    strips: tuple[MapRow, ...]


@dataclass(frozen=True)
class Smoothed:
    """One test image with its depth label and the predictions of probes without and with the smoothness loss."""

    sample: int
    image: np.ndarray
    """uint8 (H, W, 3)"""
    site: Site
    step: int
    label: np.ndarray
    """float (H, W)"""
    without: np.ndarray
    """float (h, w)"""
    smooth: np.ndarray
    """float (h, w)"""

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the colour scale."""
        return map_limits("depth", self.label)


def emerging(run: RunData, store: Store, scores: dict[str, Scores], memory: PredictionMemory) -> list[Emerging]:
    """The samples whose partial images were stored; unreadable files are skipped."""
    images = run.table("images")
    rows = None if images is None else images.filter(pc.equal(images["experiment"], EMERGENCE))
    current = set() if rows is None else set(rows["sample"].to_pylist())
    found: list[Emerging] = []
    for path in store.list(f"{EMERGENCE_FOLDER}/"):
        try:
            sample = int(path.rpartition("/")[2].partition(".")[0])
            if sample in current:
                one = _emerging(run, scores, memory, sample, load(store.get(path)))
                found += [one] if one is not None else []
        except (KeyError, ValueError, SafetensorError):
            continue
        if len(found) == EMERGING_SHOWN:
            break
    return found


def _emerging(
    run: RunData, scores: dict[str, Scores], memory: PredictionMemory, sample: int, stored: dict[str, np.ndarray]
) -> Emerging | None:
    assert run.reader is not None
    finished = run.reader.images("trained", [sample])
    if finished is None:
        return None
    stored_steps = stored["steps"].tolist()
    steps = next(iter(scores.values())).steps
    shown = list(dict.fromkeys(min(stored_steps, key=lambda s: abs(s - step)) for step in pick(steps, STRIP)))
    places = {step: stored_steps.index(step) for step in shown}
    images = {kind: {s: stored[f"{kind}.image"][i] for s, i in places.items()} for kind in LATENT_KINDS}
    rows: list[MapRow] = []
    for found in scores.values():
        rows += _map_rows(run, found, memory, sample, stored, places)
    return Emerging(sample, run.captions.get(sample, ""), finished[0], images, tuple(rows))


def _map_rows(
    run: RunData,
    scores: Scores,
    memory: PredictionMemory,
    sample: int,
    stored: dict[str, np.ndarray],
    places: dict[int, int],
) -> list[MapRow]:
    """The best site's predictions and the labels of both decoded images; empty without a label or a best site."""
    assert run.reader is not None
    task = scores.measure.task
    final, best = run.reader.labels(task, [sample]), summary.best_site(scores)
    if final is None or best is None:
        return []
    label, site = probe_units(run, task, final)[0], scores.sites[best]
    limits = map_limits(task, label)
    predicted = {s: memory.predict("trained", site, s, task, [sample]) for s in places if s in scores.steps}
    probed = {s: maps[0] for s, maps in predicted.items() if maps is not None}
    rows = [MapRow(task, f"probe at {site.name}", probed, label, limits)]
    for kind, name in LABELLER_TITLES.items():
        maps = probe_units(run, task, stored[f"{kind}.{task}"].astype(np.float32))
        rows.append(MapRow(task, name, {s: maps[i] for s, i in places.items()}, label, limits))
    return [row for row in rows if row.maps]


def smoothed(run: RunData, families: dict[str, dict[str, Scores]], memory: PredictionMemory) -> list[Smoothed]:
    """The first test images at the coarse site where smoothness costs most, as in figure 13."""
    found = families.get("smoothness", {}).get("depth")
    if found is None or run.reader is None or not found.per_image:
        return []
    # The decoder's first site is the coarsest that can still draw a scene.
    site = next((s for s in found.sites if s.side == "decoder"), found.sites[0])
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
