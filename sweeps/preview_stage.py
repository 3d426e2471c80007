"""The preview: images of every raw prompt without recording, so that only samples worth keeping are recorded.

It fills a store of its own, OUT/preview, through the same stages: sample (no sites), label (saliency), curate.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import storage
from probing.curation import drop_reason
from probing.prompts import Prompt
from sweeps import curate_stage, label_stage, sample_stage
from sweeps import run as runs
from sweeps.config import Config
from sweeps.run import Facts, Run

FOLDER = "preview"


def settings(config: Config) -> Config:
    """The settings of the preview's own store: the trained model alone, nothing recorded."""
    sampling = replace(config.sampling, variants=["trained"], sites=[], preview=False)
    return replace(config, output=f"{config.output}/{FOLDER}", sampling=sampling)


def begin(config: Config, found: Facts, prompts: tuple[Prompt, ...]) -> Run:
    """Creates the preview's store, or takes up the one that is there."""
    own = settings(config)
    runs.check_other(own, found)
    return runs.begin(own, found, prompts)


def complete(run: Run) -> bool:
    """Whether every prompt has been looked at and decided over with the present settings."""
    return not sample_stage.missing(run) and not label_stage.missing(run) and curate_stage.done(run)


def curate(run: Run) -> Counter[str]:
    """Decides over all previewed samples; how many were dropped for each reason."""
    rows = [row for shard in range(run.store.layout.shards) for row in _decisions(run, shard)]
    run.store.write_curation(rows)
    run.store.put(curate_stage.HASH_FILE, json.dumps({"stage_hash": run.hashes.curate}).encode())
    return Counter(row["reason"] for row in rows if not row["keep"])


def _decisions(run: Run, shard: int) -> list[dict[str, Any]]:
    samples = list(run.store.layout.shard_samples(shard))
    images = run.store.read_images("trained", samples)
    masks = run.store.read_labels("saliency", samples) > run.config.labels.threshold
    reasons = [
        drop_reason(image, float(mask.mean()), run.config.curation) for image, mask in zip(images, masks, strict=True)
    ]
    return [
        {"sample": sample, "keep": not reason, "reason": reason, "split": ""}
        for sample, reason in zip(samples, reasons, strict=True)
    ]


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
