"""The planted models do what they are built for: what the site holds, and what an edit of it does to the picture."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import pytest
import torch
from torch import Tensor

from probing.diffusion import model as models
from probing.diffusion.config import ModelConfig
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.hooks import record, rewrite
from probing.diffusion.sampling import sample
from probing.diffusion.sites import SiteSpec, choose
from probing.planted import labels, networks, pipeline
from probing.planted.networks import DISTRACTOR, HIDING, HINT, KINDS, READ_ONLY, SITE, SIZE, USED

SEEDS = list(range(4))
TOKENS = SIZE * SIZE
Loaded = dict[str, LatentDiffusion]


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> Loaded:
    """Each planted model, saved and loaded by the normal path."""
    folder = tmp_path_factory.mktemp("planted")
    return {
        kind: models.load(ModelConfig(name=str(pipeline.save(folder / kind, kind)), device="cpu")) for kind in KINDS
    }


def site_of(model: LatentDiffusion) -> SiteSpec:
    return choose(model.sites(), [SITE])[0]


def pictures(model: LatentDiffusion, edit: Callable[[Tensor], Tensor] | None = None) -> np.ndarray:
    """Pictures of the seeds; an edit replaces the site's output (n, tokens, channels) in steps 1 to 3."""

    def around(step: int) -> AbstractContextManager[None]:
        if edit is None or step > 3:
            return nullcontext()
        return rewrite(model.network, [site_of(model)], lambda _, acts: edit(acts), guided=False)

    return sample(model, ["a red box"] * len(SEEDS), SEEDS, guidance=1, around=around).images.numpy()


def outputs(model: LatentDiffusion) -> dict[int, Tensor]:
    """The site's output (n, tokens, channels) at each step."""
    found: dict[int, Tensor] = {}

    def around(step: int) -> AbstractContextManager[None]:
        return record(model.network, [site_of(model)], lambda _, acts: found.update({step: acts.clone()}))

    sample(model, ["a red box"] * len(SEEDS), SEEDS, guidance=1, around=around, decode=False)
    return found


def fields(images: np.ndarray) -> list[np.ndarray]:
    """Mask and depth (n, tokens) as plus and minus one, by the labellers."""
    saliency, depth = (labels.PlantedLabeller(task)(images) for task in ("saliency", "depth"))
    return [np.where(label > half, 1.0, -1.0).reshape(-1, TOKENS) for label, half in ((saliency, 127), (depth, 0.5))]


def moved(values: np.ndarray) -> np.ndarray:
    """Fields (n, tokens) of the scene two pixels further right, around the edge."""
    return np.roll(values.reshape(-1, SIZE, SIZE), 2, axis=2).reshape(-1, TOKENS)


def columns(model: LatentDiffusion) -> Tensor:
    """Directions (C, features) in which the site writes its features."""
    return model.network.get_submodule(site_of(model).module).get_parameter("weight")


def along(direction: Tensor, change: np.ndarray) -> Callable[[Tensor], Tensor]:
    """An edit that adds a direction (C), `change` (n, tokens) times."""
    amount = torch.from_numpy(change).float()[..., None] * direction
    return lambda acts: acts + amount


def test_the_pictures_show_scenes_that_differ_and_that_all_models_share(planted: Loaded):
    images = {kind: pictures(model) for kind, model in planted.items()}
    mask, depth = fields(images[USED])
    assert np.array_equal(images[USED], images[READ_ONLY])
    assert np.array_equal(images[USED], images[DISTRACTOR])
    assert len({row.tobytes() for row in mask}) == len({row.tobytes() for row in depth}) == len(SEEDS)
    assert 0.05 < (mask > 0).mean() < 0.5
    maps = ((values > 0).reshape(-1, SIZE, SIZE) for values in (mask, depth))
    assert np.array_equal(images[USED], [labels.painted(*scene) for scene in zip(*maps, strict=True)])


@pytest.mark.parametrize("kind", [USED, READ_ONLY])
def test_the_site_holds_mask_and_depth_linearly_at_every_step(planted: Loaded, kind: str):
    found, truth = outputs(planted[kind]), fields(pictures(planted[kind]))
    assert sorted(found) == list(range(1, 16))
    for acts in found.values():
        for task, expected in enumerate(truth):
            direction = columns(planted[kind])[:, task]
            reading = (acts @ direction / direction.square().sum()).numpy()
            assert np.abs(reading - expected).max() < 0.1
            assert np.abs(reading - expected).mean() < 1e-3


def test_used_and_read_only_have_the_same_output(planted: Loaded):
    pairs = zip(outputs(planted[USED]).values(), outputs(planted[READ_ONLY]).values(), strict=True)
    assert all(torch.equal(used, copied) for used, copied in pairs)


@pytest.mark.parametrize("task", [0, 1])
def test_an_edit_of_the_used_site_paints_exactly_its_target(planted: Loaded, task: int):
    model = planted[USED]
    truth = fields(pictures(model))
    target = moved(truth[task])
    edited = fields(pictures(model, along(columns(model)[:, task], target - truth[task])))
    assert not np.array_equal(target, truth[task])
    assert np.array_equal(edited[task], target)
    assert np.array_equal(edited[1 - task], truth[1 - task])


def test_nothing_done_to_the_site_that_is_only_read_changes_the_picture(planted: Loaded):
    noise = 100 * torch.randn(TOKENS, networks.CHANNELS, generator=torch.Generator().manual_seed(0))
    before = pictures(planted[READ_ONLY])
    assert np.array_equal(before, pictures(planted[READ_ONLY], lambda acts: acts + noise))
    assert not np.array_equal(before, pictures(planted[USED], lambda acts: acts + noise))


@pytest.mark.parametrize("task", [0, 1])
def test_in_the_distractor_the_hint_reads_best_and_does_nothing(planted: Loaded, task: int):
    """In the direction that the picture is painted from, a larger nuisance hides the feature."""
    model = planted[DISTRACTOR]
    truth, acts = fields(pictures(model)), outputs(model)[1].numpy()
    used = columns(model)[:, 2 + task] / HIDING
    hint = columns(model)[:, task] - used
    assert float(used @ hint) == pytest.approx(0, abs=1e-4)
    correct = []
    for direction, size in ((used, 1.0), (hint, HINT)):
        assert float(direction.square().mean().sqrt()) == pytest.approx(size)
        reading = acts @ (direction / direction.square().sum()).numpy()
        correct.append((np.sign(reading) == truth[task]).mean())
    assert correct[0] < 0.6
    assert correct[1] > 0.99
    target = moved(truth[task])
    by_hint, by_use = (fields(pictures(model, along(d, target - truth[task])))[task] for d in (hint, used))
    assert np.array_equal(by_hint, truth[task])
    assert np.array_equal(by_use, target)


def test_the_labellers_refuse_what_is_no_picture():
    with pytest.raises(ValueError, match="uint8"):
        labels.PlantedLabeller("saliency")(np.zeros((1, 4, 4, 3), np.float32))
