"""Other families of models on a card: sampling beside diffusers, and recording what their presets record."""

from __future__ import annotations

from functools import partial

from numpy.typing import NDArray

from probing.diffusion.capture import capture
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.sampling import sample
from probing.diffusion.schedules import OWN
from probing.diffusion.sites import choose
from probing.planted import unweighted
from sweeps.bench.gpu.bench import Bench, Sampling
from sweeps.config.load import load

STEPS = 10
"""denoising steps that are timed, of the 20 to 30 of a preset"""
BATCH = 4


def family(preset: str, bench: Bench) -> None:
    """The model of a preset in half precision."""
    config = load(preset, [])
    bench.__dict__.pop("model", None)  # Stable Diffusion v1.4 makes room
    bench.free()
    model = unweighted.build(
        config.model.name, bench.device, dtype="float16" if bench.device.type == "cuda" else "float32", sampler=OWN,
        narrow=bench.narrow,
    )  # fmt: skip
    measure(bench, model, config.sampling.guidance, () if bench.narrow else tuple(config.sampling.sites), preset)


def measure(bench: Bench, model: LatentDiffusion, guidance: float, names: tuple[str, ...], preset: str) -> None:
    """Sampling beside diffusers' pipeline, and recording beside sampling."""
    count = min(BATCH, bench.scale.batch)
    prompts, seeds = bench.batch(count)
    steps = min(STEPS, bench.scale.steps)
    options = Sampling(steps=steps, guidance=guidance)
    pipeline, sites = unweighted.diffusers_pipeline(model), choose(model.sites(), names)

    def ours() -> None:
        sample(model, prompts, seeds, **options)

    def drop(site: str, step: int, values: NDArray) -> None:
        """Record nothing."""

    theirs = partial(unweighted.sample_with_diffusers, pipeline, model, prompts, seeds, **options)
    seconds, _ = bench.compare(f"sampling_over_diffusers_{preset}", "scenesweep", "diffusers", ours, theirs, pairs=3)
    bench.number("sampling", count / seconds, f"samples/s of {steps} steps")
    bench.compare(
        f"copies_over_sampling_{preset}", "recording, nothing written", "sampling",
        lambda: capture(model, prompts, seeds, sites, drop, **options), ours, pairs=3,
    )  # fmt: skip
