"""The curation stage: which samples count, why others do not, and the split."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence

import numpy as np

from probing.dataset import manual_decisions
from probing.dataset.curation import Decision, Measures, curate, measure
from probing.dataset.manual_decisions import Choice
from probing.dataset.split import Split
from sweeps.runtime.run import DECISIONS, Run
from sweeps.stages import safety

HASH_FILE = "curation.json"


def done(run: Run) -> bool:
    """Whether the curation of the present settings and decisions is written."""
    if not run.store.exists(HASH_FILE):
        return False
    return json.loads(run.store.get(HASH_FILE))["stage_hash"] == run.hashes.curate


def measures(run: Run) -> dict[int, Measures]:
    """What the rules look at, by sample, of all samples that every stage so far has finished."""
    store, config = run.store, run.config
    shards = store.completed("label", "trained")
    for variant in config.sampling.variants:
        shards &= store.completed("sample", variant)
    found: dict[int, Measures] = {}
    for shard in sorted(shards):
        samples = list(store.layout.shard_samples(shard))
        flags = safety.read(run, shard) if config.curation.safety else [False] * len(samples)
        if flags is None:
            raise ValueError(f"curation.safety: shard {shard} has no flags yet; run `scenesweep curate`")
        images = store.read_images("trained", samples)
        masks = store.read_labels("saliency", samples) > config.labels.threshold
        depth = depth_labels(run, samples) if run.sites else None  # what a preview keeps depends on masks alone
        found |= zip(samples, measure(images, masks, depth, flags), strict=True)
    return found


def depth_labels(run: Run, samples: list[int]) -> np.ndarray | None:
    """Depth (n, H, W), or None in a store that has none (an early preview's)."""
    return run.store.read_labels("depth", samples) if "depth" in run.store.layout.tasks else None


def by_hand(run: Run) -> dict[int, Choice]:
    """The decisions by hand that belong to the run."""
    if not run.store.exists(DECISIONS):
        return {}
    return manual_decisions.parse(run.store.get(DECISIONS), DECISIONS, run.store.samples()["seed"].to_pylist())


def apply(run: Run, data: bytes, where: str) -> int:
    """Makes the decisions of a CSV the run's own, in place of earlier ones; how many there are.

    A CSV without rows takes all decisions back. Raises ValueError for a file that does not fit.
    """
    samples = run.store.samples().to_pydict()
    choices = manual_decisions.parse(data, where, samples["seed"])
    if choices:
        run.store.put(DECISIONS, manual_decisions.render(choices, samples["seed"], samples["prompt"]))
    elif run.store.exists(DECISIONS):
        run.store.delete(DECISIONS)
    return len(choices)


def work(run: Run) -> None:
    """Decides over all samples and writes `curation.parquet`."""
    store = run.store
    choices, measured = by_hand(run), measures(run)
    if not measured:
        raise ValueError(f"{run.config.output}: no shard is sampled and labelled yet; run `scenesweep label` first")
    found = curate(
        measured,
        store.samples()["prompt"].to_pylist(),
        [prompt["split"] for prompt in json.loads(store.get("prompts.json"))],
        run.config.curation,
        choices,
    )
    record(run, found, choices)


def record(run: Run, found: Sequence[Decision], choices: Mapping[int, Choice]) -> None:
    """Writes what became of every sample, and the summary that makes the stage done."""
    run.store.write_curation(vars(decision) for decision in found)
    note = {
        "stage_hash": run.hashes.curate,
        "by_hand": {"keep": sum(c.keep for c in choices.values()), "drop": sum(not c.keep for c in choices.values())},
        "dropped": dict(sorted(Counter(d.reason for d in found if not d.keep).items())),
    }
    run.store.put(HASH_FILE, json.dumps(note, indent=1).encode())


def dropped(run: Run) -> dict[str, int]:
    """Reason to number of samples that it dropped."""
    return json.loads(run.store.get(HASH_FILE)).get("dropped", {})


def kept(run: Run) -> tuple[np.ndarray, Split]:
    """Samples that belong to a part, ascending, and the split in positions of that list.

    Raises ValueError where a part is empty.
    """
    try:
        table = run.store.curation().to_pydict()
    except FileNotFoundError:
        raise ValueError(f"{run.config.output}: samples are not curated yet; run `scenesweep curate` first") from None
    part = {s: p for s, k, p in zip(table["sample"], table["keep"], table["split"], strict=True) if k and p}
    chosen = np.array(sorted(part), dtype=np.int64)
    names = np.array([part[s] for s in chosen.tolist()])
    return chosen, Split(*(np.flatnonzero(names == name) for name in ("train", "val", "test")))
