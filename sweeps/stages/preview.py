"""The preview: images of every raw prompt without recording, so that only samples worth keeping are recorded.

It fills a store of its own, OUT/preview, through the same stages: sample (no sites), label (depth only for visual
inspection), safety flags; then it curates by the masks.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from probing.dataset.curation import Decision, all_reasons
from probing.dataset.prompts import Prompt
from sweeps.config.schema import PREVIEW, Config
from sweeps.runtime import run
from sweeps.runtime.run import ModelInfo, Run, reopen
from sweeps.runtime.side_store import open_if_present
from sweeps.stages import curate, label, safety, sample

STAGES = (sample, label, safety)
"""stages that a preview runs before it decides"""


def settings(config: Config) -> Config:
    """Return the settings of the preview's own store: the trained model alone, nothing recorded."""
    sampling = replace(config.sampling, variants=["trained"], sites=[], preview=False)
    return replace(config, output=f"{config.output}/{PREVIEW}", sampling=sampling)


def begin(config: Config, model: ModelInfo, prompts: tuple[Prompt, ...]) -> Run:
    """Create the preview's store, or open the existing one. Raises ValueError as `run.begin` does."""
    return run.begin(settings(config), model, prompts)


def complete(run: Run) -> bool:
    """Return whether every prompt has been previewed and decided over with the current settings."""
    return not any(stage.missing(run) for stage in STAGES) and curate.done(run)


def decide(run: Run) -> Counter[str]:
    """Decide over all previewed samples, by rules and manual decisions; return the number dropped by reason."""
    choices = curate.choices_of(run)
    reasons = all_reasons(curate.measures(run), run.store.layout.samples, run.config.curation, choices)
    curate.record(run, [Decision(i, not reason, reason, "") for i, reason in enumerate(reasons)], choices)
    return Counter(filter(None, reasons))


def kept(config: Config, model: ModelInfo, prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """Return the prompts whose previewed image was kept, in order.

    Raises ValueError if the preview is not finished with these settings, or kept nothing.
    """
    store = open_if_present(settings(config).output)
    if store is None or not curate.done(reopen(settings(config), model)):
        raise ValueError(f"{config.output}: the preview is not finished; run `scenesweep sample` first")
    table = store.curation().to_pydict()
    chosen = [prompts[i] for i, keep in zip(table["sample"], table["keep"], strict=True) if keep]
    if not chosen:
        reasons = ", ".join(f"{n} {reason}" for reason, n in Counter(table["reason"]).items())
        raise ValueError(f"curation: no previewed sample is kept ({reasons}); loosen curation.* or give other prompts")
    return tuple(chosen)


def fewest(config: Config, prompts: int) -> int:
    """Return the least number of samples that the recording pass needs: the sizes of the split given as numbers."""
    parts = (config.curation.train, config.curation.val, config.curation.test)
    return min(prompts, max(1, sum(int(size) for size in parts if size >= 1)))
