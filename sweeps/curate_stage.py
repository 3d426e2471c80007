"""The curation stage: which samples count, why others do not, and the split."""

from __future__ import annotations

import json

import numpy as np

from probing.controls import Split
from probing.curation import curate
from sweeps.run import Run

HASH_FILE = "curation.json"


def done(run: Run) -> bool:
    """Whether the curation of the present settings is written."""
    if not run.store.exists(HASH_FILE):
        return False
    return json.loads(run.store.get(HASH_FILE))["stage_hash"] == run.hashes.curate


def work(run: Run) -> None:
    """Decides over all samples and writes `curation.parquet`."""
    store = run.store
    samples = store.samples().to_pydict()
    ready = set(store.complete_samples("label", "trained").tolist())
    everywhere = [
        set(store.complete_samples("sample", variant).tolist())
        for variant in run.config.sampling.variants
    ]
    whole = sorted(ready.intersection(*everywhere))
    masks = store.read_labels("saliency", whole) > run.config.labels.threshold
    given = json.loads(store.get("prompts.json"))
    decisions = curate(
        store.read_images("trained", whole),
        masks.mean((1, 2)),
        [samples["prompt"][i] for i in whole],
        [given[i] for i in whole],
        run.config.curation,
    )
    rows = {
        whole[d.sample]: {"keep": d.keep, "reason": d.reason, "split": d.split} for d in decisions
    }
    absent = {"keep": False, "reason": "shard failed", "split": ""}
    store.write_curation(
        {"sample": i, **rows.get(i, absent)} for i in range(len(samples["prompt"]))
    )
    store.put(HASH_FILE, json.dumps({"stage_hash": run.hashes.curate}).encode())


def kept(run: Run) -> tuple[np.ndarray, Split]:
    """Samples that belong to a part, ascending, and the split in positions of that list.

    Raises ValueError where a part is empty.
    """
    try:
        table = run.store.curation().to_pydict()
    except FileNotFoundError:
        raise ValueError(
            f"{run.config.output}: samples are not curated yet; run `scenesweep curate` first"
        ) from None
    part = {s: p for s, k, p in zip(table["sample"], table["keep"], table["split"], strict=True) if k and p}
    chosen = np.array(sorted(part), dtype=np.int64)
    names = np.array([part[s] for s in chosen.tolist()])
    return chosen, Split(*(np.flatnonzero(names == name) for name in ("train", "val", "test")))
