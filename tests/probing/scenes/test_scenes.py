"""The scenes world: renderer, grammar, tokenizer, autoencoder calibration, resumable training."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from probing.scenes import dataset, evaluate, teacher, text, training, vae
from probing.scenes.denoisers import diffusion
from probing.scenes.grammar import MAX_WORDS, PALETTE, WORDS, Thing, caption, relation, view, wall_distance
from probing.scenes.optimise import Loop, Schedule
from probing.scenes.render import INVERSE_DEPTH_LIMIT, draw_scene, render
from probing.scenes.weights import folder
from probing.scenes.world import Camera, Plane, Scene, Solid, Surface
from support import tiny_model

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


def test_solids_that_are_not_salient_are_not_in_the_mask():
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


def test_relation_is_depth_or_else_side():
    thing = Thing("box", "red", True, False, False, 0.2, 2.0)
    assert relation(thing, replace(thing, distance=4.0)) == "in front of"
    assert relation(replace(thing, distance=4.0), thing) == "behind"
    assert relation(thing, replace(thing, column=0.8)) == "left of"
    assert relation(replace(thing, column=0.8), thing) == "right of"


def test_caption_is_a_sentence():
    one = Thing("sphere", "red", True, False, False, 0.2, 2.0)
    two = Thing("box", "blue", False, True, True, 0.5, 4.0)
    assert caption([one, two], ("white", True), ("green", False, ""), None) == (
        "a large red sphere in front of a small floating checkered blue box on a checkered white floor and a green wall"
    )
    assert caption([one], ("white", False), ("green", True, "far"), "cyan", "seen from above") == (
        "a large red sphere on a white floor and a far checkered green wall with a cyan picture seen from above"
    )
    assert caption([one], ("white", False), None, None) == "a large red sphere on a white floor under a sky"


def test_captions_contain_the_view_and_the_distance_of_the_wall():
    assert [view(pitch) for pitch in (-4, 0, 20, 21)] == ["seen from below", "", "", "seen from above"]
    assert [wall_distance(inverse) for inverse in (0.9, 0.8, 0.45, 0.4)] == ["near", "", "", "far"]


def test_the_longest_caption_fits_the_text_encoder():
    things = [Thing("cylinder", name, True, True, True, 0.1 * place, 2.0**place) for place, name in
              enumerate(("red", "green", "blue"))]  # fmt: skip
    text_of = caption(things, ("cyan", True), ("white", True, "near"), "yellow", view(25))
    assert len(text_of.split()) <= MAX_WORDS
    assert set(text_of.split()) <= set(WORDS)


def test_tokenizer_has_one_token_per_word():
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
    done: list[tuple[int, int]] = []
    for _ in range(2):
        dataset.make(tmp_path, "train", 3, workers=1, progress=lambda *counts: done.append(counts))
    assert done == [(1, 2), (2, 2)]
    renders = dataset.load(tmp_path, "train", 3)
    assert len(renders) == 3
    assert renders.captions[2] == draw_scene(2).caption
    assert set(" ".join(renders.colours).split()) <= set(PALETTE)
    with pytest.raises(ValueError, match="train-0001-2.npz"):
        dataset.load(tmp_path, "train", 4)


def _trained(folder: Path, stops: tuple[int, ...]) -> torch.Tensor:
    """A tiny network after ten steps, stopped and resumed at the given steps."""
    for stop in (*stops, 10):
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)
        loop = Loop(network, Schedule(steps=10, warmup=2, average=0.9), folder, seed=1)
        loop.resume()

        def loss(step: int, generator: torch.Generator, network=network) -> torch.Tensor:
            return network(torch.randn(4, 3, generator=generator)).square().mean()

        if stop < 10:
            while loop.step < stop:
                loop.advance(loss)
            loop.save()
        else:
            loop.run(loss, lambda line: None)
    return torch.cat([loop.averaged[name].flatten() for name in ("weight", "bias")])


def test_a_resumed_training_equals_an_uninterrupted_one(tmp_path: Path):
    torch.testing.assert_close(_trained(tmp_path / "a", ()), _trained(tmp_path / "b", (3, 7)), atol=0, rtol=0)


def test_parameters_with_a_share_of_the_rate_move_by_that_share_and_may_join_later(tmp_path: Path):
    def loop_of(shares: dict[str, float], held: tuple[str, ...] = ()) -> Loop:
        network = torch.nn.Linear(3, 2)
        torch.nn.init.zeros_(network.weight)
        torch.nn.init.zeros_(network.bias)
        for name in held:
            network.get_parameter(name).requires_grad_(False)
        return Loop(network, Schedule(steps=9, rate=0.01, warmup=0, decay=0.0), tmp_path, 1, shares)

    def loss(step: int, generator: torch.Generator) -> torch.Tensor:
        return torch.stack([p.sum() for p in loop.learning.values()]).sum()

    loop = loop_of({"weight": 0.1})
    loop.advance(loss)
    torch.testing.assert_close(loop.model.weight, torch.full((2, 3), -0.001))  # Adam's first step has the rate's size
    torch.testing.assert_close(loop.model.bias, torch.full((2,), -0.01))

    loop = loop_of({}, held=("weight",))
    loop.advance(loss)
    loop.save()
    bias = loop.optimiser.state[loop.model.bias]["exp_avg"].clone()
    loop = loop_of({"weight": 0.5})
    loop.resume()
    assert loop.step == 1
    torch.testing.assert_close(loop.optimiser.state[loop.model.bias]["exp_avg"], bias)
    loop.advance(loss)
    assert (loop.model.weight < 0).all()


def test_object_colours_of_true_masks_are_those_of_the_scene(sixty):
    for scene in sixty[:30]:
        drawn = render(scene)
        assert evaluate.seen_colours(drawn.mask > 0.5, drawn.image) == frozenset(scene.colours)


def test_object_colours_are_those_inside_the_mask():
    image = np.zeros((32, 32, 3), np.uint8)
    image[4:14, 4:14], image[18:28, 18:28] = (200, 30, 30), (40, 70, 210)
    mask = image.any(-1)
    assert evaluate.seen_colours(mask, image) == {"red", "blue"}
    assert evaluate.seen_colours(mask & (np.arange(32) < 16), image) == {"red"}
    assert evaluate.seen_colours(np.zeros_like(mask), image) == frozenset()


def test_labelling_network_shapes_and_loss():
    torch.manual_seed(0)
    network = teacher.Teacher()
    images = np.random.default_rng(0).integers(0, 256, (3, 128, 128, 3), dtype=np.uint8)
    depth, mask = teacher.label(network.eval(), images)
    assert depth.shape == mask.shape == (3, 128, 128)
    assert ((mask >= 0) & (mask <= 1)).all()
    truth = teacher.Labels(torch.zeros(3, 128, 128), torch.ones(3, 128, 128))
    loss = teacher.teacher_loss(network, vae.to_signed(images).contiguous(), truth)
    assert torch.isfinite(loss)


def test_quality_of_perfect_labels_is_perfect(monkeypatch):
    renders = [render(draw_scene(seed)) for seed in range(3)]
    whole = dataset.Renders(
        np.stack([r.image for r in renders]),
        np.stack([r.depth for r in renders]).astype(np.float16),
        (np.stack([r.mask for r in renders]) * 255).astype(np.uint8),
        tuple(r.caption for r in renders),
        tuple(" ".join(r.colours) for r in renders),
    )
    truth = (whole.depths.astype(np.float32), (whole.masks >= 128).astype(np.float32))
    monkeypatch.setattr(teacher, "label", lambda model, images: truth)
    assert teacher.quality(None, whole.images, whole) == teacher.Quality(dice=1.0, rmse=0.0)


def test_the_shortcut_network_learns_what_is_local():
    """Depth that is a function of the row is predicted; depth that depends on the image is not."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (8, 32, 32, 3), dtype=np.uint8)
    rows = np.broadcast_to(np.linspace(0, 1, 32)[None, :, None], (8, 32, 32)).astype(np.float16)
    masks = np.zeros((8, 32, 32), np.uint8)
    masks[:, 16:] = 255
    local = dataset.Renders(images, rows, masks, ("",) * 8, ("",) * 8)
    explained, dice = evaluate.shortcut(local, local, samples=20_000, epochs=3)
    assert explained > 0.9
    assert dice > 0.95
    flat = np.broadcast_to(rng.random((8, 1, 1)).astype(np.float16), (8, 32, 32))
    hidden = dataset.Renders(images, flat, masks, (), ())
    other = dataset.Renders(images[::-1].copy(), hidden.depths, masks, (), ())
    assert evaluate.shortcut(hidden, other, samples=20_000, epochs=3)[0] < 0.5


def test_diffusion_training_step_is_finite_and_reproducible():
    torch.manual_seed(0)
    network = diffusion.Denoiser()
    network.unet = diffusion.build_unet((16, 16, 32, 32), 128)
    tokens = text.tokenize(text.build_tokenizer(), ["a red box"] * 4)
    latents = torch.randn(4, 4, 16, 16, generator=torch.Generator().manual_seed(1))
    levels = diffusion.NoiseLevels.of(diffusion.build_scheduler())
    losses = [
        diffusion.velocity_loss(network, latents, tokens, levels, torch.Generator().manual_seed(2)) for _ in range(2)
    ]
    assert torch.isfinite(losses[0])
    assert torch.equal(losses[0], losses[1])


def test_noise_levels_cover_the_whole_schedule_and_the_steps_of_sampling():
    scheduler = diffusion.build_scheduler()
    times, sigmas = diffusion.NoiseLevels.of(scheduler).draw(30, torch.Generator().manual_seed(0))
    assert [int(t) * 15 // diffusion.TIMES for t in times[:15]] == list(range(15))
    signal = scheduler.alphas_cumprod[times[:15].long()]
    assert torch.allclose(sigmas[:15], ((1 - signal) / signal).sqrt(), rtol=1e-5)
    scheduler.set_timesteps(15)
    assert sorted(times[15:].tolist(), reverse=True) == scheduler.timesteps.tolist()
    assert sorted(sigmas[15:].tolist(), reverse=True) == scheduler.sigmas[:-1].tolist()


def test_the_noise_is_that_of_stable_diffusion_shifted_to_the_size_of_the_latents():
    shipped = LMSDiscreteScheduler.from_pretrained(folder() / "pipeline", subfolder="scheduler")
    ours = diffusion.build_scheduler()
    settings = [{k: v for k, v in s.config.items() if not k.startswith("_")} for s in (shipped, ours)]
    assert settings[0] == settings[1]
    theirs = LMSDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
    # the network sees the pairs of time and noise that it was trained on
    assert torch.allclose(ours.alphas_cumprod, theirs.alphas_cumprod[: diffusion.TIMES], rtol=1e-5)
    for scheduler in (ours, theirs):
        scheduler.set_timesteps(15)
    assert float(ours.sigmas[0]) == pytest.approx(float(theirs.sigmas[0]) / diffusion.SHIFT, rel=0.01)
    # the early steps are near a quarter of Stable Diffusion's
    assert torch.allclose(ours.sigmas[:6], theirs.sigmas[:6] / diffusion.SHIFT, rtol=0.12)


def test_a_perfect_velocity_has_no_loss():
    """The target is alpha * noise - sigma * clean, which an oracle can compute."""
    levels = diffusion.NoiseLevels.of(diffusion.build_scheduler())
    sigmas = levels.draw(6, torch.Generator().manual_seed(3))[1]
    clean = torch.randn(6, 4, 2, 2, generator=torch.Generator().manual_seed(1))

    def oracle(noisy, times, tokens):
        alpha = (1 / (1 + sigmas**2)).sqrt()[:, None, None, None]
        sigma = (1 - alpha**2).sqrt()
        noise = (noisy - alpha * clean) / sigma
        return alpha * noise - sigma * clean

    loss = diffusion.velocity_loss(oracle, clean, None, levels, torch.Generator().manual_seed(3))
    assert float(loss) < 1e-8


def _attention(network: torch.nn.Module, tokens: torch.Tensor) -> torch.Tensor:
    """Mean weights (n, T, T) of the first self-attention of a UNet on tokens (n, T, C)."""
    layer = network.down_blocks[0].attentions[0].transformer_blocks[0].attn1
    return layer.get_attention_scores(layer.head_to_batch_dim(layer.to_q(tokens)), layer.head_to_batch_dim(
        layer.to_k(tokens))).unflatten(0, (len(tokens), layer.heads)).mean(1)  # fmt: skip


def test_focused_attention_attends_to_tokens_like_itself():
    """Plain attention is near-uniform; focused attention separates the two kinds of token."""
    torch.manual_seed(0)
    unet = diffusion.build_unet()
    kinds = torch.nn.functional.layer_norm(torch.randn(2, 64), (64,))
    own = torch.arange(256) % 2
    tokens = kinds[own][None] + 0.1 * torch.randn(3, 256, 64)
    same = (own[:, None] == own).float()
    with torch.no_grad():
        plain = (_attention(unet, tokens) * same).sum(-1).mean()
        diffusion.focus_attention(unet, 0)
        focused = (_attention(unet, tokens) * same).sum(-1).mean()
    assert plain < 0.6
    assert focused > 0.95


def test_queries_and_keys_of_self_attention_are_frozen_or_learn_and_the_rest_is_trained(tmp_path: Path):
    torch.manual_seed(0)
    latents, schedule = torch.randn(4, 4, 16, 16), Schedule(steps=2, average=0.5, warmup=1)
    start = diffusion.Denoiser().state_dict()
    trained = diffusion.train(latents, ["a red box"] * 4, tmp_path, schedule, print, batch=2, start=start).state_dict()
    held = {name for name in start if ".attn1.to_q." in name or ".attn1.to_k." in name}
    assert len(held) == 32
    assert {name for name in start if torch.equal(start[name], trained[name])} >= held
    assert not any(torch.equal(start[name], trained[name]) for name in start if ".attn1.to_v." in name)
    again = diffusion.train(latents, ["a red box"] * 4, tmp_path, schedule, print, batch=2, start=start).state_dict()
    assert all(torch.equal(trained[name], again[name]) for name in trained)
    schedule = replace(schedule, steps=3)
    free = diffusion.train(latents, ["a red box"] * 4, tmp_path, schedule, print, batch=2, attention=0.1).state_dict()
    assert not any(torch.equal(trained[name], free[name]) for name in held)


def test_focus_depends_on_the_seed_alone_and_leaves_the_rest():
    torch.manual_seed(0)
    first, second = diffusion.build_unet((16, 16, 32, 32)), diffusion.build_unet((16, 16, 32, 32))
    before = {name: value.clone() for name, value in first.state_dict().items()}
    for unet in (first, second):
        diffusion.focus_attention(unet, 3)
    after, other = first.state_dict(), second.state_dict()
    changed = [name for name in before if not torch.equal(before[name], after[name])]
    assert len(changed) == 32
    assert all(name.endswith(("attn1.to_q.weight", "attn1.to_k.weight")) for name in changed)
    assert all(torch.equal(after[name], other[name]) for name in changed)


def test_a_training_continues_from_finished_weights_with_or_without_focus(tmp_path: Path):
    training.start_from(tmp_path / "plain", folder())
    training.start_from(tmp_path / "focused", folder(), focus=True)
    plain, focused = (training.load_start(tmp_path / name, "denoiser") for name in ("plain", "focused"))
    assert plain.keys() == focused.keys() == diffusion.Denoiser().state_dict().keys()
    changed = {name for name in plain if not torch.equal(plain[name], focused[name])}
    assert len(changed) == 32
    assert all(".attn1.to_" in name for name in changed)
    shipped = training.load_single(folder() / "pipeline" / "unet")
    assert all(torch.equal(plain[f"unet.{name}"], value) for name, value in shipped.items())
    kept = (tmp_path / "plain" / "vae.safetensors").read_bytes()
    training.start_from(tmp_path / "plain", folder(), focus=True)
    assert (tmp_path / "plain" / "vae.safetensors").read_bytes() == kept
    again = training.load_start(tmp_path / "plain", "denoiser")
    assert all(torch.equal(plain[name], again[name]) for name in plain)


def test_uniform_attention_has_an_entropy_of_one():
    model = tiny_model.model()
    for _, attention in diffusion.self_attentions(model.network):
        torch.nn.init.zeros_(attention.to_q.weight)
    alike = evaluate.attention_entropy(model, ["a red box"] * 2, 2.0, steps=2)
    np.testing.assert_allclose(alike, np.ones(16), atol=1e-5)
    diffusion.focus_attention(model.network, 0)
    assert (evaluate.attention_entropy(model, ["a red box"] * 2, 2.0, steps=2) < 0.9).mean() > 0.5
