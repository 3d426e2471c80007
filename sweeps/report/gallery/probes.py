"""Pictures of the probe grid: which test images are shown, and what the probes predict for them."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load, save

from probing.diffusion.variants import is_plain
from storage import CorruptFile, Store
from storage.keys import BUILT
from sweeps.analysis import summary
from sweeps.analysis.floors import depth_scale, in_split, mask_threshold
from sweeps.analysis.scores import Scores
from sweeps.analysis.tables import RunData, Site, StoreReader
from sweeps.runtime.layout import PREDICTIONS

STRIP = (0, 1 / 14, 2 / 14, 4 / 14, 9 / 14, 1)
"""places of the steps of which pictures are shown, from the first (0) to the last (1): early ones lie closer"""
PERCENTILES = (90, 65, 35, 10)
"""percentiles of the test score at which examples are chosen"""
CONTACTS = 12
"""generated images of the trained network that are shown; half as many of the others"""


@dataclass(frozen=True)
class Reading:
    """One task in one example: the label and the best site's prediction at each step."""

    task: str
    site: Site
    label: np.ndarray
    """float (H, W), in the probe's units"""
    predictions: dict[int, np.ndarray]
    """float (h, w) by step"""
    scores: dict[int, float]
    """this image's test score by step"""
    control: np.ndarray | None
    """float (h, w): the randomised network's prediction at the last step"""
    control_score: float

    @property
    def limits(self) -> tuple[float, float]:
        """Ends of the colour scale."""
        return map_limits(self.task, self.label)


@dataclass(frozen=True)
class Example:
    """One test image with its predictions."""

    sample: int
    caption: str
    percentile: int
    image: np.ndarray
    """uint8 (H, W, 3)"""
    readings: list[Reading]


@dataclass(frozen=True)
class Contact:
    """Generated images of one variant with their captions."""

    variant: str
    samples: list[int]
    captions: list[str]
    images: np.ndarray
    """uint8 (n, H, W, 3)"""


def pick(steps: Sequence[int], places: Sequence[float]) -> list[int]:
    """Steps at places between the first (0) and the last (1) of `steps`, without repetition."""
    return list(dict.fromkeys(steps[round(place * (len(steps) - 1))] for place in places))


class PredictionMemory:
    """Predictions of a reader, cached beside the report so that they survive `scenesweep clean`."""

    def __init__(self, reader: StoreReader, store: Store, stage_hash: str) -> None:
        self.reader, self.store, self.stage_hash = reader, store, stage_hash
        self.used: dict[str, np.ndarray] = {}
        self.cached: dict[str, np.ndarray] = {}
        if store.exists(PREDICTIONS):
            with suppress(SafetensorError, CorruptFile):
                self.cached = load(store.get(PREDICTIONS, BUILT))

    def predict(
        self, variant: str, site: Site, step: int, task: str, samples: Sequence[int], experiment: str = ""
    ) -> np.ndarray | None:
        """float32 (n, h, w): fresh predictions if the activations are stored, else the cached ones of this stage."""
        found = self.reader.predict(variant, site, step, task, samples, experiment)
        place = "/".join(filter(None, (experiment, variant, site.name, str(step), task)))
        keys = [f"{self.stage_hash}/{place}/{i}" for i in samples]
        if found is None:
            if not all(key in self.cached for key in keys):
                return None
            found = np.stack([self.cached[key] for key in keys])
        self.used |= dict(zip(keys, found.astype(np.float32), strict=True))
        return found

    def save(self) -> None:
        """Write the predictions that this report used, if it used any."""
        if self.used:
            self.store.put(PREDICTIONS, save(self.used))


def contacts(run: RunData) -> list[Contact]:
    """The first test images of the trained network, and those of the other networks for the same prompts."""
    samples = in_split(run, "test")[:CONTACTS]
    captions = run.captions
    found = []
    for variant in filter(is_plain, run.variants):
        chosen = samples if variant == "trained" else samples[: CONTACTS // 2]
        images = run.reader.images(variant, chosen) if run.reader and chosen else None
        if images is not None:
            found.append(Contact(variant, chosen, [captions.get(i, "") for i in chosen], images))
    return found


def choose(scores: Scores) -> list[tuple[int, int]]:
    """(sample, percentile) of test images at fixed percentiles of the best site's last score."""
    site = summary.best_site(scores)
    if site is None or not scores.per_image:
        return []
    values = scores.measure.sign * scores.values[scores.variant_index("trained"), site, -1]
    order = np.argsort(values, kind="stable")[: int(np.isfinite(values).sum())]
    if not order.size:
        return []
    places = {round(p / 100 * (order.size - 1)): p for p in PERCENTILES}
    return [(int(scores.samples[order[place]]), p) for place, p in places.items()]


def examples(run: RunData, scores: dict[str, Scores], memory: PredictionMemory) -> list[Example]:
    """Chosen test images with labels and predictions; empty if images or probes are no longer stored."""
    if run.reader is None or not scores or "trained" not in run.variants:
        return []
    chosen = choose(next(iter(scores.values())))
    samples = [sample for sample, _ in chosen]
    images = run.reader.images("trained", samples) if samples else None
    if images is None:
        return []
    readings = [found for s in scores.values() if (found := _readings(run, s, memory, samples))]
    captions = run.captions
    return [
        Example(sample, captions.get(sample, ""), percentile, images[i], [found[i] for found in readings])
        for i, (sample, percentile) in enumerate(chosen)
    ]


def _readings(run: RunData, scores: Scores, memory: PredictionMemory, samples: list[int]) -> list[Reading]:
    """The best site's readings of each sample; empty if labels or predictions are missing."""
    assert run.reader is not None
    task, index = scores.measure.task, summary.best_site(scores)
    labels = run.reader.labels(task, samples)
    if index is None or labels is None:
        return []
    site, labels = scores.sites[index], probe_units(run, task, labels)
    steps = pick(scores.steps, STRIP)
    predicted = {s: memory.predict("trained", site, s, task, samples) for s in steps}
    maps = {s: values for s, values in predicted.items() if values is not None}
    if not maps:
        return []
    other = next(iter(summary.randomised(scores)), None)
    control = memory.predict(other, site, scores.steps[-1], task, samples) if other else None
    places = [int(np.flatnonzero(scores.samples == s)[0]) for s in samples]
    trained = scores.values[scores.variant_index("trained"), index][:, places]
    controls = scores.values[scores.variant_index(other), index, -1, places] if other else np.full(len(samples), np.nan)
    return [
        Reading(
            task,
            site,
            labels[i],
            {s: values[i] for s, values in maps.items()},
            {s: float(trained[scores.steps.index(s), i]) for s in maps},
            None if control is None else control[i],
            float(controls[i]),
        )
        for i in range(len(samples))
    ]


def map_limits(task: str, label: np.ndarray) -> tuple[float, float]:
    """Ends of the colour scale for maps of a label: 0 to 1, or the 1st to the 99th percentile of depth."""
    if task == "saliency":
        return 0.0, 1.0
    low, high = np.percentile(label, (1, 99))
    return float(low), float(high)


def probe_units(run: RunData, task: str, labels: np.ndarray) -> np.ndarray:
    """Stored labels in the units that the probes predict: float32, 0 or 1, or standardised depth."""
    if task == "saliency":
        return (labels > mask_threshold(run)).astype(np.float32)
    mean, std = depth_scale(run)
    return ((labels - mean) / std).astype(np.float32)
