"""Edits and labellers on a card."""

from __future__ import annotations

import math
from dataclasses import replace
from functools import cache, partial
from zlib import crc32

import numpy as np
from numpy.typing import NDArray

from interventions.config import MAIN, InterventionConfig
from interventions.labelling import Labelling, Original
from interventions.plan import EditTask, batches, plan
from interventions.sources.base import ProbeKey, Sources
from interventions.sources.moments import Moments
from interventions.worker import Intervener
from probing.diffusion.sampling import sample
from sweeps.bench.gpu.bench import PROMPT, Bench
from sweeps.bench.gpu.fitting import label_maps
from sweeps.bench.gpu.scale import GUIDANCE
from sweeps.bench.paired import row
from sweeps.config.load import load

TEST_IMAGES = 371
"""of the paper"""
VECTORS = 256
"""activation vectors that describe a site"""


def invented(channels: dict[str, int]) -> Sources:
    """Probes and activation vectors of noise, for sites with these channels."""

    @cache
    def drawn(name: str, rows: int, columns: int) -> NDArray[np.float32]:
        return np.random.default_rng(crc32(name.encode())).normal(scale=0.2, size=(rows, columns)).astype(np.float32)

    def probe(key: ProbeKey) -> NDArray[np.float32]:
        name = f"{key.task}/{key.site}/{key.step}/{key.variant}/{key.control}"
        return drawn(name, 2 if key.task == "saliency" else 1, channels[key.site])

    def moments(task: str, site: str, step: int, variant: str) -> Moments:
        raise ValueError("edits along the weights need no moments")

    return Sources(probe, lambda site, step: drawn(site, VECTORS, channels[site]), moments)


def settings(bench: Bench) -> InterventionConfig:
    """The edits of the preset `paper`; narrow ones have fewer steps and moves."""
    scale = bench.scale
    return replace(
        load("paper", []).interventions, moves=scale.moves, iterations=scale.iterations,
        saliency_steps=scale.saliency_steps, depth_steps=scale.depth_steps,
    )  # fmt: skip


def edits(bench: Bench) -> None:
    """All edits of one image with their controls, labels and scores, beside plain sampling of as many images."""
    config, model = settings(bench), bench.model
    masks, depth = label_maps(model.image_size[0])
    image = np.random.default_rng(0).integers(0, 255, (*model.image_size, 3), dtype=np.uint8)
    original = Original(PROMPT, 0, image, masks[0], depth[0])
    salient, near = bench.labellers
    intervener = Intervener(
        model, config, invented({site.name: site.channels for site in model.sites()}), lambda sample: original,
        Labelling(salient, near, 0, 0.5, 0.3), GUIDANCE, steps=bench.scale.steps,
    )  # fmt: skip
    tasks = [task for task in plan(config, [0], [0], GUIDANCE, bench.scale.steps) if task.experiment == MAIN]
    edited = sampled = 0.0
    for task in tasks:
        rows = batches(config.moves, task.controls, config.rows)
        pair = bench.compare(
            f"edits_over_sampling_{task.task}", "edits, labelled and scored", "plain sampling of as many images",
            partial(edit, intervener, task), partial(plain, bench, [len(batch) for batch in rows]), pairs=2,
            images=sum(map(len, rows)),
        )  # fmt: skip
        edited, sampled = edited + pair[0], sampled + pair[1]
        bench.number(f"edit_{task.task}", pair[0], "s per image with all its moves and controls")
    bench.add(row("edits_over_sampling", "edits of both tasks", "plain sampling", [(edited, sampled)], unit="s"))
    bench.number("overhead", edited / sampled, "times plain sampling")
    bench.number("editing", 3600 * len(tasks) / edited, "edits/h")
    bench.number("all_images", edited * TEST_IMAGES / 3600, f"h for {TEST_IMAGES} images")


def edit(intervener: Intervener, task: EditTask) -> None:
    """One task."""
    assert intervener(task).rows


def plain(bench: Bench, counts: list[int]) -> None:
    """Sample batches of these sizes."""
    for count in counts:
        prompts, seeds = bench.batch(count)
        sample(bench.model, prompts, seeds, **bench.sampling)


def labelling(bench: Bench) -> None:
    """Images a second of both labellers."""
    size, count = bench.model.image_size, bench.scale.labelled
    images = np.random.default_rng(0).integers(0, 255, (count, *size, 3), dtype=np.uint8)
    for name, labeller in zip(("tracer", "midas"), bench.labellers, strict=True):
        labels = labeller(images)
        assert math.isfinite(float(labels.mean(dtype=np.float64))), f"{name}: labels are not finite"
        bench.per_second(name, count, partial(labeller, images), "images/s")
