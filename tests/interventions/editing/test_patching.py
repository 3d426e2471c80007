"""Activation patching: own activations change nothing, those of another image change it; rows, pictures, plans."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from interventions import pictures
from interventions.config import MAIN, PATCHING, InterventionConfig
from interventions.controls import EDIT
from interventions.editing.patching import patch, record_source
from interventions.plan import Row, plan
from interventions.worker import NothingToMoveError
from probing.diffusion.config import PAPER_STEPS
from probing.diffusion.sampling import sample
from probing.diffusion.variants import OTHER_SEED, noise_seed
from storage import tables
from support import interventions_fakes as fakes

HOW = {"guidance": 2.0, "steps": fakes.STEPS}
EVERY = tuple(range(1, fakes.STEPS + 1))


def test_a_source_is_the_plain_sample_with_every_site_and_step():
    model = fakes.model()
    source = record_source(model, fakes.PROMPT, 5, model.sites(), (1, 3), **HOW)
    plain = sample(model, [fakes.PROMPT], [5], steps=fakes.STEPS, guidance=2.0).images.numpy()[0]
    np.testing.assert_array_equal(source.image, plain)
    assert set(source.activations) == {(site.name, step) for site in model.sites() for step in (1, 3)}
    for site in model.sites():
        assert source.activations[site.name, 3].shape == (site.tokens, site.channels)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_own_activations_change_nothing(guidance: float):
    model, how = fakes.model(), {**HOW, "guidance": guidance}
    source = record_source(model, fakes.PROMPT, 5, model.sites(), EVERY, **how)
    back = patch(model, fakes.PROMPT, 5, source.activations, model.sites(), **how)
    np.testing.assert_array_equal(back, source.image)


def test_only_the_conditional_half_is_recorded_and_replaced():
    model = fakes.model()
    sites = model.sites()[-1:]
    source = record_source(model, fakes.PROMPT, 5, sites, EVERY, **HOW)
    zeros = {key: acts * 0 for key, acts in source.activations.items()}
    without = {key: acts for key, acts in zeros.items() if key[1] == 2}
    own = sample(model, [fakes.PROMPT], [6], steps=fakes.STEPS, guidance=2.0).images.numpy()[0]
    assert not np.array_equal(patch(model, fakes.PROMPT, 6, without, sites, **HOW), own)
    elsewhere = record_source(model, "a blue box", 5, sites, (2,), **HOW)
    assert not np.allclose(elsewhere.activations[sites[0].name, 2], source.activations[sites[0].name, 2])


@pytest.mark.parametrize("task", ["saliency", "depth"])
def test_patching_gives_one_row_scored_against_the_source(task: str):
    worker = fakes.intervener(transplants=1, tasks=(task,))
    few, every = (t for t in plan(worker.config, [6]) if t.experiment == PATCHING)
    assert (few.spec.steps, every.spec.steps) == ((1,), tuple(range(1, PAPER_STEPS + 1)))
    outcome = worker(few)
    (row,) = outcome.rows
    table = tables.rows_to_table("interventions", outcome.rows, tables.INTERVENTIONS)
    assert (row["control"], row["experiment"], row["steps"], table.num_rows) == (EDIT, PATCHING, "1", 1)
    original, model = fakes.original(6), fakes.model()
    seed = noise_seed(OTHER_SEED, original.seed)
    source = sample(model, [original.prompt], [seed], steps=fakes.STEPS, guidance=2.0).images.numpy()
    (target,) = worker.labelling(source)
    shown = pictures.unpack(pictures.pack(outcome.pictures))
    assert shown.rows == (Row(0, EDIT), Row(0, "donor"))
    assert shown.steps == (1,)
    np.testing.assert_array_equal(shown.images[1], source[0])
    np.testing.assert_allclose(shown.targets[0], target.label(task), atol=2e-3)
    (after,) = worker.labelling(shown.images[:1])
    if task == "depth":
        assert row["score_after"] == pytest.approx(np.sqrt(np.square(after.depth - target.depth).mean()))
    else:
        assert row["area_after"] == pytest.approx(after.mask.mean())


def test_a_source_without_an_object_skips_the_task():
    worker = fakes.intervener(transplants=1)
    blind = replace(worker.labelling, saliency=lambda images: np.zeros(images.shape[:3], np.uint8), content=None)
    task = next(t for t in plan(worker.config, [6]) if t.experiment == PATCHING)
    with pytest.raises(NothingToMoveError, match="source"):
        replace(worker, labelling=blind)(task)


def test_patching_has_its_own_number_of_images():
    config = InterventionConfig(images=3, moves=2, transplants=2, tasks=("depth",))
    tasks = plan(config, range(5))
    assert [t.sample for t in tasks if t.experiment == MAIN] == [0, 1, 2]
    assert [t.sample for t in tasks if t.experiment == PATCHING] == [0, 0, 1, 1]
    assert not any(t.experiment == PATCHING for t in plan(replace(config, transplants=0), range(5)))
