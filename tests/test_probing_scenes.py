"""The scenes world: renderer, grammar, tokenizer, autoencoder calibration, resumable training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from probing.scenes import dataset, text, vae
from probing.scenes.grammar import MAX_WORDS, PALETTE, WORDS, Thing, caption, relation
from probing.scenes.optimise import Loop, Schedule
from probing.scenes.render import INVERSE_DEPTH_LIMIT, draw_scene, render
from probing.scenes.world import Camera, Plane, Scene, Solid, Surface

PLAIN = Surface("red", 0.0, 1.0)


def a_scene(solid: Solid, pitch: float = 0.0) -> Scene:
    ground = Plane((0.0, 1.0, 0.0), 0.0, Surface("green", 0.0, 1.0))
    camera = Camera(height=1.0, pitch=pitch, roll=0.0, tangent=0.5)
    return Scene(camera, (ground,), (solid,), None, (0.0, 1.0, 0.0), 0.5, (0.6, 0.7, 0.9), "x")


def ball(centre: tuple[float, float, float], radius: float) -> Solid:
    return Solid("sphere", centre, (radius,) * 3, 0.0, PLAIN, True)


def test_ground_depth_is_half_pictures_below_the_horizon():
    far = ball((0.0, 100.0, 5.0), 0.1)
    depth = render(a_scene(far), size=32, samples=1).depth
    rows = (np.arange(32) + 0.5) / 16 - 1
    expected = np.clip(rows, 0, INVERSE_DEPTH_LIMIT)
    np.testing.assert_allclose(depth, np.repeat(expected[:, None], 32, 1), atol=1e-5)


def test_sphere_depth_and_size_match_the_geometry():
    drawn = render(a_scene(ball((0.0, 1.0, 4.0), 1.0)), size=64, samples=2)
    nearest = 1.0 / 0.5 / 3.0
    assert drawn.depth[30:34, 30:34].max() == pytest.approx(nearest, rel=1e-2)
    # A ball of radius r at distance d covers the tangent circle r / sqrt(d^2 - r^2).
    radius = 32 * (1 / math.sqrt(15)) / 0.5
    assert drawn.mask.sum() == pytest.approx(math.pi * radius**2, rel=0.02)


@pytest.mark.parametrize("shape", ["box", "cylinder"])
def test_upright_solids_show_their_front_face(shape: str):
    solid = Solid(shape, (0.0, 1.0, 4.0), (1.0, 1.0, 1.0), 0.0, PLAIN, True)
    drawn = render(a_scene(solid), size=64, samples=1)
    assert drawn.depth[32, 32] == pytest.approx(1 / 0.5 / 3, rel=1e-3)
    width = drawn.mask[32].sum()
    expected = 64 * (1 / 3) / 0.5 / 2 * (2 if shape == "box" else 2 * 3 / math.sqrt(15))
    assert width == pytest.approx(expected, abs=1.5)


def test_what_is_not_salient_is_not_in_the_mask():
    solid = replace(ball((0.0, 1.0, 4.0), 1.0), salient=False)
    assert render(a_scene(solid), size=16).mask.max() == 0


def test_drawn_scenes_repeat_and_differ():
    first, again, other = (render(draw_scene(seed)) for seed in (5, 5, 6))
    assert (first.image == again.image).all()
    assert (first.image != other.image).any()
    assert first.caption == again.caption


@pytest.fixture(scope="module")
def sixty():
    return [draw_scene(seed) for seed in range(60)]


def test_captions_use_the_grammar_and_fit(sixty):
    for scene in sixty:
        words = scene.caption.split()
        assert set(words) <= set(WORDS)
        assert len(words) <= MAX_WORDS
        assert len(set(scene.colours)) == len(scene.colours)
        for colour in scene.colours:
            assert colour in words


def test_the_world_is_varied(sixty):
    """Depth is no function of the row, and objects cover a plausible share."""
    drawn = [render(scene, size=32, samples=1) for scene in sixty]
    depth = np.stack([d.depth for d in drawn])
    explained = 1 - np.square(depth - depth.mean(0)).mean() / depth.var()
    assert explained < 0.5
    assert 0.10 < np.mean([d.mask.mean() for d in drawn]) < 0.35


def test_relation_prefers_depth_then_side():
    thing = Thing("box", "red", True, False, False, 0.2, 2.0)
    assert relation(thing, replace(thing, distance=4.0)) == "in front of"
    assert relation(replace(thing, distance=4.0), thing) == "behind"
    assert relation(thing, replace(thing, column=0.8)) == "left of"
    assert relation(replace(thing, column=0.8), thing) == "right of"


def test_caption_reads_as_a_sentence():
    one = Thing("sphere", "red", True, False, False, 0.2, 2.0)
    two = Thing("box", "blue", False, True, True, 0.5, 4.0)
    assert caption([one, two], ("white", True), ("green", False), None) == (
        "a large red sphere in front of a small floating checkered blue box "
        "on a checkered white floor and a green wall"
    )


def test_tokenizer_gives_one_token_a_word():
    tokenizer = text.build_tokenizer()
    ids = text.tokenize(tokenizer, ["a large red sphere", "", "zebra"])
    assert ids.shape == (3, MAX_WORDS + 2)
    assert (ids[0] != 0).sum() == 6
    assert (ids[1] != 0).sum() == 2
    assert tokenizer.unk_token_id in ids[2].tolist()
    assert len({tokenizer.convert_tokens_to_ids(word) for word in WORDS}) == len(WORDS)


def test_calibrated_latents_have_stable_diffusions_scale_and_decode_the_same():
    torch.manual_seed(0)
    model = vae.build((8, 16, 16, 16)).eval()
    images = np.random.default_rng(0).integers(0, 256, (6, 64, 64, 3), dtype=np.uint8)
    before = vae.encode(model, images)
    picture = vae.decode(model, before).astype(int)
    vae.calibrate(model, before)
    after = vae.encode(model, images)
    scaled = after * model.config.scaling_factor
    torch.testing.assert_close(scaled.std((0, 2, 3)), torch.ones(4), atol=1e-3, rtol=0)
    torch.testing.assert_close(scaled.mean((0, 2, 3)), torch.zeros(4), atol=1e-3, rtol=0)
    assert np.abs(vae.decode(model, after).astype(int) - picture).max() <= 1


def test_renders_resume_and_are_read_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(dataset, "PART", 2)
    made = [dataset._render_part(job) for job in dataset._jobs(tmp_path, "train", 3)]
    assert len(made) == 2
    assert list(dataset._jobs(tmp_path, "train", 3)) == []
    read = dataset.load(tmp_path, "train", 3)
    assert len(read) == 3
    assert read.captions[2] == draw_scene(2).caption
    assert set(" ".join(read.colours).split()) <= set(PALETTE)
    with pytest.raises(ValueError, match="missing; render the set again"):
        dataset.load(tmp_path, "train", 5)


def _trained(folder: Path, stops: tuple[int, ...]) -> torch.Tensor:
    """A tiny network after ten steps, stopped and taken up at the given steps."""
    for stop in (*stops, 10):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)
        loop = Loop(network, Schedule(steps=10, warmup=2, average=0.9), folder, seed=1)
        loop.resume()

        def loss(step: int, generator: torch.Generator, network=network) -> torch.Tensor:
            return network(torch.randn(4, 3, generator=generator)).square().mean()

        if stop < 10:
            while loop.step < stop:
                loop._advance(loss)
            loop.save()
        else:
            loop.run(loss, lambda line: None)
    return torch.cat([loop.averaged[name].flatten() for name in ("weight", "bias")])


def test_a_resumed_training_equals_an_undisturbed_one(tmp_path: Path):
    torch.testing.assert_close(
        _trained(tmp_path / "a", ()), _trained(tmp_path / "b", (3, 7)), atol=0, rtol=0
    )
