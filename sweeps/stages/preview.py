"""The preview: images of every raw prompt without recording, so that only samples worth keeping are recorded.

It fills a store of its own, OUT/preview, through the same stages: sample (no sites), label (depth for the page alone),
curate.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

import storage
from probing.dataset.curation import Decision, all_reasons
from probing.dataset.prompts import Prompt
from sweeps.config.schema import PREVIEW, Config
from sweeps.runtime import run as runs
from sweeps.runtime.run import ModelInfo, Run
from sweeps.stages import curate as curate_stage
from sweeps.stages import label, safety, sample


def settings(config: Config) -> Config:
    """The settings of the preview's own store: the trained model alone, nothing recorded."""
    sampling = replace(config.sampling, variants=["trained"], sites=[], preview=False)
    return replace(config, output=f"{config.output}/{PREVIEW}", sampling=sampling)


def begin(config: Config, found: ModelInfo, prompts: tuple[Prompt, ...]) -> Run:
    """Creates the preview's store, or takes up the one that is there."""
    own = settings(config)
    runs.check_other(own, found)
    return runs.begin(own, found, prompts)


def complete(run: Run) -> bool:
    """Whether every prompt has been looked at and decided over with the present settings."""
    stages = (sample, label, safety)
    return not any(stage.missing(run) for stage in stages) and curate_stage.done(run)


def curate(run: Run) -> Counter[str]:
    """Decides over all previewed samples, by rules and by hand; how many were dropped for each reason."""
    choices = curate_stage.by_hand(run)
    reasons = all_reasons(curate_stage.measures(run), run.store.layout.samples, run.config.curation, choices)
    curate_stage.record(run, [Decision(i, not reason, reason, "") for i, reason in enumerate(reasons)], choices)
    return Counter(filter(None, reasons))


def kept(config: Config, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The prompts whose previewed image was kept, in order.

    Raises ValueError where the preview is not finished, or kept nothing.
    """
    try:
        table = storage.open(settings(config).output).curation().to_pydict()
    except (ValueError, FileNotFoundError):
        raise ValueError(f"{config.output}: the preview is not finished; run `scenesweep sample` first") from None
    chosen = [prompts[i] for i, keep in zip(table["sample"], table["keep"], strict=True) if keep]
    if not chosen:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(table["reason"]).items())
        raise ValueError(f"curation: no previewed sample is kept ({reasons}); loosen curation.* or give other prompts")
    return tuple(chosen)


def fewest(config: Config, prompts: int) -> int:
    """Samples that the recording pass needs at least: the sizes of the split, where they are numbers."""
    parts = (config.curation.train, config.curation.val, config.curation.test)
    return min(prompts, max(1, sum(int(size) for size in parts if size >= 1)))
