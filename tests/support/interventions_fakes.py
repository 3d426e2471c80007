"""A tiny model with invented probes and labellers, for tests of interventions."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache
from zlib import crc32

import numpy as np

from interventions.config import InterventionConfig
from interventions.editing.steer import as_direction
from interventions.labelling import Labelling, Original
from interventions.sources.base import ProbeKey, Sources
from interventions.sources.moments import Moments, measure
from interventions.worker import Intervener
from probing.diffusion.families.base import LatentDiffusion
from support import tiny_model as tiny

PROMPT = "a large red sphere on a green floor under a sky"
STEPS = 4
"""denoising steps: enough for early, late and untouched ones"""


@lru_cache(maxsize=1)
def model() -> LatentDiffusion:
    return tiny.model()


def channels(site: str) -> int:
    return next(s.channels for s in model().sites() if s.name == site)


def probe(key: ProbeKey) -> np.ndarray:
    """Weights that depend on the key alone."""
    text = f"{key.task}.{key.site}.{key.step}.{key.variant}.{key.control}"
    shape = (2 if key.task == "saliency" else 1, channels(key.site))
    return np.random.default_rng(crc32(text.encode())).normal(scale=0.5, size=shape).astype(np.float32)


def vectors(site: str, step: int) -> np.ndarray:
    random = np.random.default_rng([crc32(site.encode()), step])
    return random.normal(size=(64, channels(site))).astype(np.float32)


def moments(task: str, site: str, step: int, variant: str) -> Moments:
    random = np.random.default_rng([crc32(f"{task}.{variant}.{site}".encode()), step])
    acts = random.normal(size=(64, channels(site))).astype(np.float32)
    label = acts @ as_direction(probe(ProbeKey(task, site, step)), channels(site))[0]
    return measure([(acts, label, label > 0)])


SOURCES = Sources(probe, vectors, moments)


def mask() -> np.ndarray:
    found = np.zeros((128, 128), np.uint8)
    found[44:84, 40:80] = 255
    return found


def labelling() -> Labelling:
    """Bright is salient, red is near."""
    return Labelling(
        saliency=lambda images: images.mean(-1).astype(np.uint8),
        depth=lambda images: images[..., 0].astype(np.float32) / 255,
        threshold=127,
        mean=0.5,
        std=0.25,
        content=lambda mask, image: frozenset({"bright"} if image[mask].mean() > 127 else {"dark"}),
    )


def original(sample: int) -> Original:
    """A sample whose labels do not come from its image, so that they cannot depend on it."""
    image = np.random.default_rng(sample).integers(0, 255, (128, 128, 3), dtype=np.uint8)
    rows, _ = np.mgrid[:128, :128] / 128
    depth = (rows + 0.5 * (mask() > 0)).astype(np.float32)
    return Original(PROMPT, 100 + sample, image, mask(), depth)


def intervener(**changes: object) -> Intervener:
    """A worker for `changes` of a configuration with two moves, one site and one step."""
    small = InterventionConfig(
        moves=2, saliency_sites=("up.2.1",), depth_sites=("up.2.1",), saliency_steps=(1,), depth_steps=(1,),
        iterations=8, lr=0.05,
    )  # fmt: skip
    config = replace(small, **changes)
    return Intervener(
        model(), config, SOURCES, original, labelling(), 2.0, {"stage_hash": "h", "attempt": 1}, steps=STEPS
    )
