"""Curation: which samples are kept, why the others are not, and the split."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from cluster import Executor, Observer, Outcome
from probing.dataset import manual_decisions
from probing.dataset.curation import Decision, Measures, curate, measure
from probing.dataset.manual_decisions import Choice
from probing.dataset.split import Split, curated
from storage import CorruptFile, Store
from storage.keys import CURATED, DECISIONS, MANIFEST, PROMPTS
from sweeps.runtime.layout import TRAINED
from sweeps.runtime.live_status import LiveStatus
from sweeps.runtime.run import Run, replace_decisions
from sweeps.stages import safety
from sweeps.stages.base import NOTES, PlanInput, StageInfo, StagePrice, StageStatus, StatusRow

INFO = StageInfo("curate", verb="curate", doing="curation", unit="steps", cost="curate", required=True)


@dataclass(frozen=True)
class CurateTask:
    """The decision over all samples, which the driver makes in one go."""

    key: str = INFO.name


def done(run: Run) -> bool:
    """Return whether the curation of the current settings and manual decisions is written and undamaged."""
    if run.store.readable_document(CURATED).get("stage_hash") != run.hashes.curate:
        return False
    try:
        run.store.curation()
    except (CorruptFile, FileNotFoundError):
        return False
    return True


def missing(run: Run) -> list[CurateTask]:
    """Return the one task if curation is not done with the current settings."""
    return [] if done(run) else [CurateTask()]


def measures(run: Run) -> dict[int, Measures]:
    """Return what the rules look at, by sample, for all samples that every earlier stage has finished.

    Labels of other settings do not count. Raises ValueError if safety flags are missing.
    """
    store, config = run.store, run.config
    shards = store.completed("label", TRAINED, stage_hash=run.hashes.label)
    for variant in config.sampling.variants:
        shards &= store.completed("sample", variant)
    result: dict[int, Measures] = {}
    for shard in sorted(shards):
        samples = list(store.layout.shard_samples(shard))
        flags = safety.read(run, shard) if config.curation.safety else [False] * len(samples)
        if flags is None:
            raise ValueError(f"curation.safety: shard {shard} has no flags yet; run `scenesweep curate`")
        images = store.read_images(TRAINED, samples)
        masks = store.read_labels("saliency", samples) > config.labels.threshold
        depth = depth_labels(run, samples) if run.sites else None  # a preview decides by masks alone
        result |= zip(samples, measure(images, masks, depth, flags), strict=True)
    return result


def depth_labels(run: Run, samples: list[int]) -> np.ndarray | None:
    """Return depth (n, H, W), or None if the store has none (an early preview's)."""
    return run.store.read_labels("depth", samples) if "depth" in run.store.layout.tasks else None


def choices_of(run: Run) -> dict[int, Choice]:
    """Return the manual decisions that belong to the run, by sample."""
    if not run.store.exists(DECISIONS):
        return {}
    return manual_decisions.parse(
        run.store.get(DECISIONS, MANIFEST), DECISIONS, run.store.samples()["seed"].to_pylist()
    )


def apply(store: Store, data: bytes, source: str) -> int:
    """Replace a run's manual decisions by those of a CSV and return how many there are.

    A CSV without rows withdraws all decisions. Raises ValueError if the file does not fit the run's samples.
    """
    samples = store.samples().to_pydict()
    choices = manual_decisions.parse(data, source, samples["seed"])
    rendered = manual_decisions.render(choices, samples["seed"], samples["prompt"])
    replace_decisions(store, rendered if choices else None)
    return len(choices)


def execute(run: Run, executor: Executor, observers: Sequence[Observer], tasks: Sequence[CurateTask]) -> Outcome:
    """Decide over all samples and write `curation.parquet`.

    Raises ValueError if no sample is labelled yet, or if too few are kept for the split.
    """
    store = run.store
    choices, measured = choices_of(run), measures(run)
    if not measured:
        raise ValueError(f"{run.config.output}: no shard is sampled and labelled yet; run `scenesweep label` first")
    splits = [prompt["split"] for prompt in store.read_json(PROMPTS, list, recorded_in=MANIFEST)]
    prompts = store.samples()["prompt"].to_pylist()
    dropped = record(run, curate(measured, prompts, splits, run.config.curation, choices), choices)
    samples, split = kept(run)
    sizes = ", ".join(f"{len(part)} {name}" for name, part in split.parts)
    notes = [
        *(f"curate: {count} dropped ({reason})" for reason, count in dropped.items()),
        f"curate: {len(samples)} samples in use ({sizes})",
    ]
    return Outcome({task.key: {NOTES: notes} for task in tasks}, {}, {})


def record(run: Run, decisions: Sequence[Decision], choices: Mapping[int, Choice]) -> dict[str, int]:
    """Write the decision over every sample, and with it the summary that marks the stage as done.

    Returns the number of dropped samples by reason.
    """
    dropped = dict(sorted(Counter(d.reason for d in decisions if not d.keep).items()))
    kept = sum(choice.keep for choice in choices.values())
    note = {"stage_hash": run.hashes.curate, "by_hand": {"keep": kept, "drop": len(choices) - kept}, "dropped": dropped}
    run.store.write_curation((vars(decision) for decision in decisions), note)
    return dropped


def kept(run: Run) -> tuple[np.ndarray, Split]:
    """Return the samples of all parts, ascending, and the split as positions in that list.

    Raises ValueError if the samples are not curated yet with these settings, or a part is empty.
    """
    if not done(run):
        raise ValueError(
            f"{run.config.output}: samples are not curated with these settings yet; run `scenesweep curate` first"
        )
    try:
        table = run.store.curation().to_pydict()
    except FileNotFoundError:
        raise ValueError(f"{run.config.output}: samples are not curated yet; run `scenesweep curate` first") from None
    return curated(table)


def status(run: Run, live: LiveStatus) -> StageStatus:
    """Return one row without counts."""
    return StageStatus([StatusRow("curation", complete=done(run))])


def prices(plan: PlanInput) -> list[StagePrice]:
    """Return nothing: curation takes seconds."""
    return []
