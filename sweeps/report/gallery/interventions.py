"""Pictures of edits: which of the stored ones the report shows."""

from __future__ import annotations

from collections.abc import Collection, Sequence

from safetensors import SafetensorError

from interventions.config import ANIMATION, DIRECTIONS, MAIN, PATCHING, SECOND_OBJECT
from interventions.controls import EDIT
from interventions.pictures import FOLDER, Pictures, unpack
from interventions.recipe import from_yaml
from storage import Store

SHOWN = 3
"""images of each task whose edits are shown"""
SERIES = 2
"""images whose second objects are shown"""


def kept(store: Store, hashes: Collection[str]) -> list[Pictures]:
    """Stored pictures with the given stage hashes, by experiment, task and sample; unreadable files are skipped."""
    found = []
    for path in store.list(f"{FOLDER}/"):
        if path.endswith(".safetensors"):
            try:
                found.append(unpack(store.get(path)))
            except (KeyError, ValueError, SafetensorError):
                continue
    found = [p for p in found if p.stage_hash in hashes]
    return sorted(found, key=lambda p: (p.experiment, p.task != "saliency", p.sample, step_count(p)))


def step_count(shown: Pictures) -> int:
    """Number of edited steps; 0 if the file does not record it."""
    return len(shown.steps or (from_yaml(shown.recipe).spec.steps if shown.recipe else ()))


def of_experiment(found: Sequence[Pictures], experiment: str, task: str = "") -> list[Pictures]:
    """Pictures of an experiment that contain real edits, optionally of one task only."""
    own = [p for p in found if p.experiment == experiment and task in ("", p.task)]
    return [p for p in own if any(row.control == EDIT for row in p.rows)]


def pairs(found: Sequence[Pictures], task: str) -> list[list[Pictures]]:
    """The first images of the main edits (Figures 7, 8), each with its edits along every direction."""
    own = of_experiment(found, MAIN, task)
    samples = list(dict.fromkeys(p.sample for p in own))[:SHOWN]
    return [_by_direction([p for p in own if p.sample == sample]) for sample in samples]


def _by_direction(found: Sequence[Pictures]) -> list[Pictures]:
    return sorted(found, key=lambda p: DIRECTIONS.index(p.direction))


def by_steps(found: Sequence[Pictures], task: str) -> list[Pictures]:
    """One image with a growing number of edited steps (Figure 11); empty without that ablation.

    Of several directions, the last one of DIRECTIONS that was ablated."""
    ablated = _by_direction(of_experiment(found, "steps", task))
    if not ablated:
        return []
    direction = ablated[-1].direction
    sample = min(p.sample for p in ablated if p.direction == direction)
    every = [*ablated, *of_experiment(found, MAIN, task)]
    return sorted((p for p in every if (p.sample, p.direction) == (sample, direction)), key=step_count)


def series(found: Sequence[Pictures]) -> list[Pictures]:
    """Second objects that move away (Figure 12)."""
    return of_experiment(found, SECOND_OBJECT)[:SERIES]


def transplants(found: Sequence[Pictures], task: str) -> list[list[Pictures]]:
    """The first images with patched activations of another image, each with fewer, then more patched steps."""
    own = of_experiment(found, PATCHING, task)
    samples = list(dict.fromkeys(p.sample for p in own))[:SHOWN]
    return [sorted((p for p in own if p.sample == sample), key=step_count) for sample in samples]


def moving(found: Sequence[Pictures]) -> list[Pictures]:
    """One object that moves across the image."""
    return of_experiment(found, ANIMATION)
