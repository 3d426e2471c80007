"""Pictures of the report: which examples are shown, and what the probes read in them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from probing.diffusion.variants import is_plain
from sweeps.analysis import summary
from sweeps.analysis.floors import depth_scale, in_split, mask_threshold
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData, Site, StoreReader

SHOWN_STEPS = (1, 2, 3, 5, 10, 15)
PERCENTILES = (90, 65, 35, 10)
STRIP = 12
CACHE = "report/predictions.safetensors"


@dataclass(frozen=True)
class Reading:
    """One task in one example: the label and what the best site's probe makes of each step."""

    task: str
    site: Site
    label: np.ndarray
    """float (H, W), in the probe's units"""
    predictions: dict[int, np.ndarray]
    """float (h, w) by step"""
    scores: dict[int, float]
    """this image's test score by step"""
    control: np.ndarray | None
    """the randomised network's probe at the last step"""
    control_score: float
    low: float
    high: float


@dataclass(frozen=True)
class Example:
    """One test image with its readings."""

    sample: int
    caption: str
    percentile: int
    image: np.ndarray
    readings: list[Reading]


@dataclass(frozen=True)
class Contact:
    """Generated images of one variant with their captions."""

    variant: str
    samples: list[int]
    captions: list[str]
    images: np.ndarray


class PredictionMemory:
    """Predictions of a reader, kept beside the report so that it survives `scenesweep clean`."""

    def __init__(self, reader: StoreReader, store: Any, stamp: str) -> None:
        self.reader, self.store, self.stamp = reader, store, stamp
        self.kept = self._load()
        self.used: dict[str, np.ndarray] = {}

    def predict(
        self, variant: str, site: Site, step: int, task: str, samples: Sequence[int], experiment: str = ""
    ) -> np.ndarray | None:
        """Fresh predictions where the activations are there, else those kept for this stage."""
        found = self.reader.predict(variant, site, step, task, samples, experiment)
        place = "/".join(filter(None, (experiment, variant, site.name, str(step), task)))
        keys = [f"{self.stamp}/{place}/{i}" for i in samples]
        if found is None:
            if not all(key in self.kept for key in keys):
                return None
            found = np.stack([self.kept[key] for key in keys])
        self.used |= dict(zip(keys, found.astype(np.float32), strict=True))
        return found

    def save(self) -> None:
        """Keep what this report used, when it used any."""
        if self.used:
            self.store.put(CACHE, save(self.used))

    def _load(self) -> dict[str, np.ndarray]:
        if not self.store.exists(CACHE):
            return {}
        try:
            return load(self.store.get(CACHE))
        except SafetensorError:
            return {}


def contacts(run: RunData) -> list[Contact]:
    """The first test images of the trained network, and the others' for the same prompts."""
    samples = in_split(run, "test")[:STRIP]
    words = run.captions
    found = []
    for variant in filter(is_plain, run.variants):
        chosen = samples if variant == "trained" else samples[: STRIP // 2]
        images = run.reader.images(variant, chosen) if run.reader and chosen else None
        if images is not None:
            found.append(Contact(variant, chosen, [words.get(i, "") for i in chosen], images))
    return found


def choose(scores: Scores) -> list[tuple[int, int]]:
    """(sample, percentile) of test images at fixed percentiles of the best site's last score."""
    site = summary.best_site(scores)
    if site is None or not scores.per_image:
        return []
    values = scores.measure.sign * scores.values[scores.at("trained"), site, -1]
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    if not order.size:
        return []
    places = {round(p / 100 * (order.size - 1)): p for p in PERCENTILES}
    return [(int(scores.samples[order[place]]), p) for place, p in places.items()]


def examples(run: RunData, scores: dict[str, Scores], memory: PredictionMemory) -> list[Example]:
    """Chosen test images with label and predictions; empty where pictures or probes are gone."""
    if run.reader is None or not scores or "trained" not in run.variants:
        return []
    picked = choose(next(iter(scores.values())))
    samples = [sample for sample, _ in picked]
    images = run.reader.images("trained", samples) if samples else None
    if images is None:
        return []
    readings = {task: _readings(run, s, memory, samples) for task, s in scores.items()}
    words = run.captions
    return [
        Example(sample, words.get(sample, ""), percentile, images[i], [r[i] for r in readings.values() if r])
        for i, (sample, percentile) in enumerate(picked)
    ]


def _readings(run: RunData, scores: Scores, memory: PredictionMemory, samples: list[int]) -> list[Reading]:
    """The best site's readings of each sample; empty where labels or predictions are gone."""
    assert run.reader is not None
    task, index = scores.measure.task, summary.best_site(scores)
    labels = run.reader.labels(task, samples)
    if index is None or labels is None:
        return []
    site, labels = scores.sites[index], probe_units(run, task, labels)
    maps = {
        s: found
        for s in SHOWN_STEPS
        if s in scores.steps and (found := memory.predict("trained", site, s, task, samples)) is not None
    }
    other = next(iter(summary.randomised(scores)), None)
    last = memory.predict(other, site, scores.steps[-1], task, samples) if other else None
    places = [int(np.flatnonzero(scores.samples == s)[0]) for s in samples]

    def score(variant: str | None, step: int, i: int) -> float:
        if variant is None:
            return float("nan")
        t = scores.steps.index(step)
        return float(scores.values[scores.at(variant), index, t, places[i]])

    return [
        Reading(
            task,
            site,
            labels[i],
            {s: found[i] for s, found in maps.items()},
            {s: score("trained", s, i) for s in maps},
            None if last is None else last[i],
            score(other, scores.steps[-1], i),
            *_limits(task, labels[i]),
        )
        for i in range(len(samples) if maps else 0)
    ]


def _limits(task: str, label: np.ndarray) -> tuple[float, float]:
    if task == "saliency":
        return 0.0, 1.0
    low, high = np.percentile(label, (1, 99))
    return float(low), float(high)


def probe_units(run: RunData, task: str, labels: np.ndarray) -> np.ndarray:
    """Stored labels in the units that the probes predict: 0 or 1, or standardised depth."""
    if task == "saliency":
        return (labels > mask_threshold(run)).astype(np.float32)
    mean, deviation = depth_scale(run)
    return ((labels - mean) / deviation).astype(np.float32)
