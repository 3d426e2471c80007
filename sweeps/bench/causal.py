"""The full pipeline on planted models, of which it is known what they use: its verdicts must be the planted ones."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

import storage
from interventions.config import DIRECTIONS, MEAN_DIFFERENCE, PATTERN, WEIGHTS
from interventions.controls import EDIT, NULLS
from interventions.counterfactual import Move, shift_depth, shift_mask
from interventions.pictures import FOLDER, Pictures, unpack
from probing.planted import labels, networks, pipeline
from probing.planted.networks import DISTRACTOR, READ_ONLY, USED
from probing.statistics import Interval
from sweeps import pipeline as stages
from sweeps.analysis import summary, tables
from sweeps.analysis.claims import CONTRADICTED, PARTLY, SUPPORTED, ClaimInputs, judge
from sweeps.analysis.interventions import Verdict, verdicts
from sweeps.bench.paired import Row
from sweeps.config.load import load, to_dict
from sweeps.config.schema import Config
from sweeps.runtime.run import stored_config

PLANTED = {
    USED: dict.fromkeys(DIRECTIONS, SUPPORTED),
    READ_ONLY: dict.fromkeys(DIRECTIONS, CONTRADICTED),
    DISTRACTOR: {WEIGHTS: CONTRADICTED, PATTERN: SUPPORTED, MEAN_DIFFERENCE: SUPPORTED},
}
"""model -> direction of the edit -> the verdict that is right"""
EXACT = 0.02
"""share of the way to its target by which an edited picture may miss it; or by which it may move where it must not"""
TASKS = ("saliency", "depth")
PROMPTS = 36
"""a few of them have next to no object, and are dropped"""
SITES, STEPS = [networks.SITE], [1, 2, 3]
SETTINGS = {
    "name": "planted",
    # a guidance of 1, so that an edit is not multiplied
    "sampling": {"guidance": 1.0, "shard": 18, "variants": ["trained", "random"], "sites": SITES},
    "labels": {"saliency": labels.NAME, "depth": labels.NAME},
    "curation": {"train": 18, "val": 4, "test": 8, "min_foreground": 0.05},
    "probe": {"normalise": "rms", "lr": 0.03, "epochs": 120, "batch": 12, "val_every": 4, "selection": "val"},
    "sweep": {"steps": STEPS, "controls": ["none", "permuted"], "trial_axes": ["variant"]},
    "experiments": {"names": []},
    "interventions": {
        "directions": DIRECTIONS, "controls": ["none", *NULLS], "moves": 1, "keep_images": 8, "depth_span": 0.0,
        "saliency_sites": SITES, "depth_sites": SITES, "saliency_steps": STEPS, "depth_steps": STEPS,
        # small against the gap between object and background: an optimiser that overshoots it makes edits so large
        # that controls of the same size act, too
        "lr": 0.003, "lr_units": "rms",
    },
    # one process, because others do not know the labellers
    "ray": {"address": "none"},
    "model": {"device": "cpu"},
    "tracking": {"mode": "disabled"},
}  # fmt: skip
"""of a run, where they are not the defaults"""


def bench_causal(kinds: tuple[str, ...] = networks.KINDS) -> list[Row]:
    """A row for each planted model and direction of edits, such as `used_pattern`.

    `ratio` is the share of the way to their targets that edited pictures have moved, over both tasks: 1 if each
    picture is the one that its moved label paints, 0 if nothing has changed. `effect` and `lead` (over the null that is
    hardest to beat) are the mean target minus original by task with their intervals; `verdict` is that of the
    direction, `claim` that of the whole run, `planted` the right one. `seconds` are those of the run.
    """
    rows = []
    for kind in kinds:
        with tempfile.TemporaryDirectory() as folder:
            started = time.perf_counter()
            output = run(Path(folder), kind)
            rows += rows_of(output, kind, time.perf_counter() - started)
    return rows


def run(folder: Path, kind: str) -> str:
    """Run the full pipeline on a planted model in a folder; returns the output.

    Raises RuntimeError if a part of it failed.
    """
    labels.register()
    result = stages.execute(configured(folder, kind))
    if result.failed:
        raise RuntimeError(f"bench causal: {kind}: {next(iter(result.failed.values()))}")
    return str(folder / "run")


def configured(folder: Path, kind: str) -> Config:
    """Write a planted model and its prompts into a folder; returns the settings of its run."""
    prompts = folder / "prompts.csv"
    prompts.write_text("prompt,seed\n" + "".join(f"planted scene {number},{number}\n" for number in range(PROMPTS)))
    settings = folder / "settings.yaml"
    settings.write_text(json.dumps(SETTINGS))  # any JSON is YAML
    model, output = pipeline.save(folder / "model", kind), folder / "run"
    return load(str(settings), [f"model.name={model}", f"prompts.source={prompts}", f"output={output}"])


def rows_of(output: str, kind: str, seconds: float) -> list[Row]:
    """The rows of a finished run."""
    store = storage.open(output)
    edits = summary.interventions(tables.load(store, to_dict(stored_config(output))))
    claim = judge(ClaimInputs({}, {}, [], edits))[-1].verdict
    pictures = [unpack(store.get(path)) for path in store.list(f"{FOLDER}/") if path.endswith(".safetensors")]
    rows = []
    for direction, planted in PLANTED[kind].items():
        found = {task: _verdict(verdicts(edits, task), direction) for task in TASKS}
        acting = sum(verdict.acts for verdict in found.values())
        verdict = {0: CONTRADICTED, 1: PARTLY, 2: SUPPORTED}[acting]
        ways = [share for one in pictures if one.direction == direction for share in ways_of(one)]
        share = float(np.mean(ways))
        kind_of_bar, bar = ("least", 1 - EXACT) if planted == SUPPORTED else ("most", EXACT)
        exact = share >= bar if planted == SUPPORTED else share <= bar
        rows.append({
            "what": f"{kind}_{direction}", "ratio": share, "of": "way of the picture", "to": "way to its target",
            "seconds": [seconds, seconds], "pairs": [],
            "effect": {task: _interval(v.edit.effect.moved) for task, v in found.items()},
            "lead": {task: {"null": v.lead.other, **_interval(v.lead.gain)} for task, v in found.items() if v.lead},
            "verdict": verdict, "claim": claim, "planted": planted,
            "bar": {kind_of_bar: bar}, "met": exact and verdict == planted,
        })  # fmt: skip
    return rows


def _verdict(found: list[Verdict], direction: str) -> Verdict:
    return next(v for v in found if v.edit.main and v.edit.effect.series.direction == direction)


def _interval(interval: Interval) -> dict[str, float]:
    return {name: round(value, 4) for name, value in vars(interval).items()}


def ways_of(pictures: Pictures) -> Iterator[float]:
    """Share of the way to its target that each edited picture has moved: the target is what the moved label paints."""
    before = pictures.before
    mask, near = (before[..., labels.COLOUR[task]] > 127 for task in TASKS)
    for row, image in zip(pictures.rows, pictures.images, strict=True):
        move = pictures.goals[row.trial]
        if row.control != EDIT or not isinstance(move, Move):
            continue
        if pictures.task == "saliency":
            target = labels.painted(shift_mask(mask, move), near)
        else:
            target = labels.painted(mask, shift_depth(near.astype(np.float32), move) > 0.5)
        left, whole = (np.abs(one.astype(np.float64) - target).sum() for one in (image, before))
        if whole > 0:  # a flat depth map stays as it is
            yield float(1 - left / whole)
