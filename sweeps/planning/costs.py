"""What each stage of a run costs in work and UNet calls: pure arithmetic on a configuration.

A call is one sample at one denoising step, both halves of guidance together; without guidance it counts half.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from interventions.config import ANIMATION, MAIN, SECOND_OBJECT, TRANSPLANT, InterventionConfig
from interventions.counterfactual import SERIES
from interventions.plan import EditTask, plan, rows_of
from probing.dataset.curation import SPLITS
from probing.probes.controls import PICTURE
from sweeps.config.schema import STEPS, Config
from sweeps.runtime.grid import picture_steps
from sweeps.runtime.layout import LATENT_KINDS

HALF = 0.5


@dataclass(frozen=True)
class StagePrice:
    """One line of the plan's table."""

    name: str
    work: str
    """how much there is to do, in words"""
    calls: float = 0.0
    """UNet calls"""
    more: bool = False
    """whether the calls are only the least part of the time"""


def test_samples(config: Config, samples: int) -> int:
    """Most test samples that curation can leave of so many: the given size of the split, or what the others leave."""
    sizes = [getattr(config.curation, part) for part in SPLITS]
    counts = [int(size * samples) if size < 1 else int(size) for size in sizes]
    *others, test = counts
    return min(test or max(0, samples - sum(others)), samples)


def images_of(task: EditTask, config: InterventionConfig) -> int:
    """Images that a task samples: each goal's edit with its controls, and the original where guidance differs."""
    if task.experiment == TRANSPLANT:
        return 2  # donor and receiver
    if task.spec.iterations == 0:
        return 0
    goals = {SECOND_OBJECT: len(SERIES), ANIMATION: config.frames}.get(task.experiment, config.moves)
    return goals * len(rows_of([0], task.controls))


def edits(config: Config, test: int) -> list[StagePrice]:
    """A line for the main interventions and one for each further experiment of them, with all their controls."""
    settings, sampling = config.interventions, config.sampling.guidance
    images: dict[str, int] = {}
    calls: dict[str, float] = {}
    for task in plan(settings, range(test), guidance=sampling):
        scale = next(g for g in (task.guidance, settings.guidance, sampling) if g is not None)
        count = images_of(task, settings) + (scale != sampling)
        images[task.experiment] = images.get(task.experiment, 0) + count
        calls[task.experiment] = calls.get(task.experiment, 0.0) + count * STEPS * (1.0 if scale > 1 else HALF)
    return [
        StagePrice(f"editing: {name}", f"{count} images with controls", calls[name], more=True)
        for name, count in images.items()
    ]


def edited(config: Config, test: int) -> float:
    """Edits of test images: a main edit with its controls is one, others count by the images that they make."""
    settings = config.interventions
    tasks = plan(settings, range(test))
    unit = {task.spec.task: images_of(task, settings) for task in tasks if task.experiment == MAIN}
    return sum(images_of(task, settings) / unit[task.spec.task] for task in tasks if unit[task.spec.task])


def further_sites(config: Config, samples: int) -> list[StagePrice]:
    """Reading the sites beside the recorded ones: convolutions by the UNet without guidance, the VAE without a call."""
    found = []
    for name in ("conv", "vae"):
        if name in config.experiments.names:
            steps = len(set(getattr(config.experiments, f"{name}_steps") or config.sweep.steps))
            calls = HALF * samples * steps if name == "conv" else 0.0
            found.append(StagePrice(f"further sites: {name}", f"{samples} samples x {steps} steps", calls))
    return found


def decoded(config: Config, samples: int) -> list[StagePrice]:
    """Decoding the clean estimates, for the control that reads their colours."""
    steps = len(picture_steps(config.sweep))
    return [StagePrice("decoding", f"{samples * steps} clean estimates, for {PICTURE}")] if steps else []


def emergence(config: Config, test: int) -> list[StagePrice]:
    """Decoding and labelling stored latents."""
    wanted = config.experiments
    if "emergence" not in wanted.names:
        return []
    steps = len(set(wanted.emergence_steps or config.sweep.steps))
    images = min(wanted.emergence_images or test, test)
    return [StagePrice("emergence", f"{images * steps * len(LATENT_KINDS)} images decoded and labelled")]


def transfer(config: Config, sites: int) -> list[StagePrice]:
    """Probes of each step scored at all steps, as far as the grid fits the probes that it carries over."""
    if "transfer" not in config.experiments.names or 0 not in config.sweep.seeds or "none" not in config.sweep.controls:
        return []
    steps = len(set(config.sweep.steps))
    return [StagePrice("transfer", f"{sites * len(config.sweep.tasks) * steps**2} scores of probes at other steps")]


def table(prices: Sequence[StagePrice], rate: float, workers: int, told: str) -> list[str]:
    """Lines of text; `rate` is that of one of `workers`, in samples a second, and `told` says where it is from."""
    wide = max(len(price.name) for price in prices)
    room = max(len(price.work) for price in prices)
    lines = [f"{'stage':{wide}}  {'work':{room}}  {'UNet calls':>10}     hours"]
    for price in prices:
        hours = price.calls / STEPS / rate / workers / 3600
        shown = f"{hours:>9.2f}{' or more' if price.more else ''}" if price.calls else f"{'-':>9}"
        lines.append(f"{price.name:{wide}}  {price.work:{room}}  {price.calls:>10.0f} {shown}".rstrip())
    calls = sum(price.calls for price in prices)
    hours = calls / STEPS / rate / workers / 3600
    lines.append(f"{'all UNet calls':{wide}}  {'':{room}}  {calls:>10.0f} {hours:>9.2f} or more")
    return [
        *lines,
        f"hours: of the UNet calls alone, {STEPS} calls a sample, on {workers} worker(s) at {rate:g} samples/s each "
        f"({told}); the inner optimisation of edits comes on top, and - has no rate",
    ]
