"""Sampling with capture: what is recorded, in which half, how often, and errors."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline

from probing.diffusion.capture import NonFiniteActivation, Writers, capture, checked
from probing.diffusion.config import ModelConfig
from probing.diffusion.families.base import LatentDiffusion
from probing.diffusion.metadata import noise_levels
from probing.diffusion.model import load, variant
from probing.diffusion.sampling import generators, initial_noise, sample, schedule
from probing.scenes.denoisers import diffusion
from support import tiny_model

PROMPTS = ["a large red sphere on a green floor under a sky", "a small blue box on a white floor under a sky"]
SEEDS = [3, 99]


@pytest.fixture(scope="module")
def model() -> LatentDiffusion:
    return tiny_model.model()


class Sink:
    """Keeps what is written, thread-safe."""

    def __init__(self) -> None:
        self.arrays: dict[tuple[str, int], np.ndarray] = {}
        self.latents: dict[int, tuple[np.ndarray, np.ndarray]] = {}
        self.lock = threading.Lock()
        self.calls = 0

    def write(self, site: str, step: int, values: np.ndarray) -> None:
        with self.lock:
            self.calls += 1
            self.arrays[site, step] = values

    def write_latents(self, step: int, after: np.ndarray, clean: np.ndarray) -> None:
        self.latents[step] = (after, clean)


def captured(model, prompts=PROMPTS, seeds=SEEDS, guidance=2.0, steps=3, forced=None) -> tuple[Sink, object]:
    sink = Sink()
    found = capture(
        model, prompts, seeds, model.sites(), sink.write, sink.write_latents,
        steps=steps, guidance=guidance, forced=forced,
    )  # fmt: skip
    return sink, found


def test_every_site_is_recorded_once_a_step(model):
    sink, found = captured(model)
    assert sink.calls == 3 * 16
    for site in model.sites():
        for step in (1, 2, 3):
            assert sink.arrays[site.name, step].shape == (2, site.tokens, site.channels)
            assert sink.arrays[site.name, step].dtype == np.float16
    assert found.images.shape == (2, 128, 128, 3)
    assert sorted(sink.latents) == [1, 2, 3]
    assert not any(m._forward_hooks for m in model.network.modules())


def module_of(site: str) -> str:
    """Where diffusers keeps the output projection of a site's self-attention."""
    block, *numbers = site.split(".")
    place = f"mid_block.attentions.{numbers[0]}" if block == "mid" else f"{block}_blocks.{'.attentions.'.join(numbers)}"
    return f"{place}.transformer_blocks.0.attn1.to_out.0"


def test_a_site_holds_the_outputs_of_its_own_module(model):
    outputs: dict[str, list[torch.Tensor]] = {}
    handles = []
    for site in model.sites():
        kept = outputs.setdefault(site.name, [])
        module = model.network.get_submodule(module_of(site.name))
        handles.append(module.register_forward_hook(lambda _module, _inputs, out, kept=kept: kept.append(out[2:])))
    sample(model, PROMPTS, SEEDS, steps=2, guidance=2.0, decode=False)
    for handle in handles:
        handle.remove()
    sink, _ = captured(model, steps=2)
    for site, values in outputs.items():
        for step, expected in enumerate(values, 1):
            assert np.array_equal(sink.arrays[site, step], expected.half().numpy()), f"{site} at step {step}"


def test_the_recorded_half_is_the_conditional_one(model):
    """Both runs start from the same latents, so the conditional halves of the first step must agree."""
    guided, _ = captured(model, guidance=3.0, steps=2)
    alone, _ = captured(model, guidance=1.0, steps=2)
    empty, _ = captured(model, prompts=["", ""], guidance=1.0, steps=2)
    for site in model.sites():
        a, b, c = (s.arrays[site.name, 1].astype(np.float32) for s in (guided, alone, empty))
        np.testing.assert_allclose(a, b, atol=2e-3)
    assert np.abs(a - c).max() > 2e-3


def test_samples_hardly_depend_on_the_rest_of_their_shard(model):
    together, _ = captured(model, steps=2)
    alone, _ = captured(model, PROMPTS[1:], SEEDS[1:], steps=2)
    a, b = together.arrays["up.3.2", 2][1], alone.arrays["up.3.2", 2][0]
    np.testing.assert_allclose(a.astype(np.float32), b.astype(np.float32), atol=5e-3)


def test_a_shard_repeats_byte_for_byte(model):
    first, second = captured(model)[0], captured(model)[0]
    for key, values in first.arrays.items():
        assert values.tobytes() == second.arrays[key].tobytes()


def test_capture_changes_no_image(model):
    _, with_capture = captured(model, steps=4)
    plain = sample(model, PROMPTS, SEEDS, steps=4, guidance=2.0)
    assert torch.equal(with_capture.images, plain.images)


def test_sampling_equals_diffusers(model):
    """The same latents as diffusers' StableDiffusionPipeline."""
    pipeline = StableDiffusionPipeline(
        vae=model.vae, text_encoder=model.text[0].encoder, tokenizer=model.text[0].tokenizer, unet=model.network,
        scheduler=diffusion.build_scheduler(), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip
    pipeline.set_progress_bar_config(disable=True)
    expected = pipeline(
        PROMPTS, num_inference_steps=5, guidance_scale=2.5, output_type="latent",
        latents=initial_noise(model, generators(SEEDS)),
    ).images  # fmt: skip
    latents = sample(model, PROMPTS, SEEDS, steps=5, guidance=2.5, decode=False).latents
    torch.testing.assert_close(latents, expected, atol=2e-4, rtol=1e-4)


def test_forced_latents_enter_the_network(model):
    own, _ = captured(model, steps=3)
    start = initial_noise(model, generators(SEEDS)) * diffusion_sigma(model)
    forced = [start, *(torch.from_numpy(own.latents[step][0]) for step in (1, 2))]
    again, _ = captured(model, steps=3, forced=forced)
    for key, values in own.arrays.items():
        np.testing.assert_allclose(values.astype(np.float32), again.arrays[key].astype(np.float32), atol=2e-3)
    other = [torch.randn_like(x) for x in forced]
    foreign, _ = captured(model, steps=3, forced=other)
    assert np.abs(foreign.arrays["mid.0", 3].astype(np.float32) - own.arrays["mid.0", 3]).max() > 1e-2


def diffusion_sigma(model) -> float:
    return float(schedule(model, 3).init_noise_sigma)


def test_the_clean_estimate_at_the_last_step_is_nearly_the_result(model):
    sink, found = captured(model, steps=15)
    after, clean = sink.latents[15]
    np.testing.assert_allclose(after, found.latents.numpy(), atol=1e-5)
    assert np.abs(after - clean).mean() < 0.5 * np.abs(after).mean()


def test_non_finite_activations_are_named(model):
    with pytest.raises(NonFiniteActivation, match="site up.1.0 step 4"):
        checked("up.1.0", 4, torch.tensor([1.0, 7e4]).half().numpy())
    site = next(site for site in model.sites() if site.name == "up.3.2")
    bias, written = model.network.get_submodule(site.module).bias.data, []
    before = bias.clone()
    try:
        bias.fill_(1e5)
        with pytest.raises(NonFiniteActivation, match="site up.3.2 step 1"):
            capture(model, PROMPTS, SEEDS, [site], lambda *a: written.append(a), steps=2, guidance=2.0)
    finally:
        bias.copy_(before)
    assert not written


def test_an_error_of_a_write_reaches_the_caller(model):
    def broken(site, step, values):
        raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        capture(model, PROMPTS, SEEDS, model.sites(), broken, steps=3, guidance=2.0)
    assert not any(m._forward_hooks for m in model.network.modules())


def test_at_most_two_steps_wait():
    gate, begun = threading.Event(), []
    with Writers(threads=1) as writers:

        def produce() -> None:
            for step in range(4):
                writers.begin_step()
                begun.append(step)
                writers.submit(gate.wait)

        thread = threading.Thread(target=produce)
        thread.start()
        thread.join(0.3)
        waiting = list(begun)
        gate.set()
        thread.join(5)
    assert waiting == [0, 1]
    assert begun == [0, 1, 2, 3]


def test_permutation_keeps_every_value_and_the_biases(model):
    random = variant(model, "random", 100)
    again = variant(model, "random", 100)
    for name, weight in model.network.state_dict().items():
        shuffled = random.network.state_dict()[name]
        if name.endswith("bias"):
            assert torch.equal(weight, shuffled)
        else:
            assert torch.equal(weight.flatten().sort()[0], shuffled.flatten().sort()[0])
        assert torch.equal(shuffled, again.network.state_dict()[name])
    assert random.vae is model.vae


@pytest.mark.parametrize("kind", ["random", "random_forced", "reinit"])
def test_a_seed_in_the_name_takes_the_place_of_the_settings(model, kind):
    own, same, other = (variant(model, *named).network.state_dict() for named in
                        ((f"{kind}@7", 100), (kind, 7), (kind, 100)))  # fmt: skip
    assert all(torch.equal(own[name], same[name]) for name in own)
    assert any(not torch.equal(own[name], other[name]) for name in own)


def test_reinit_differs_and_repeats(model):
    one, two = (variant(model, "reinit", 7).network.conv_in.weight for _ in range(2))
    assert torch.equal(one, two)
    assert not torch.equal(one, model.network.conv_in.weight)


def test_unknown_words_are_refused(model):
    with pytest.raises(ValueError, match="does not know 'dragon'"):
        model.encode(["a red dragon"])


@pytest.mark.parametrize(
    ("config", "message"),
    [(ModelConfig(name="/nowhere/at/all"), "no directory"), (ModelConfig(name="owner/name"), "pin the commit")],
)
def test_wrong_models_are_refused_in_one_line(config, message):
    with pytest.raises(ValueError, match=message):
        load(config)


def test_an_unknown_device_is_refused():
    with pytest.raises(ValueError, match="model.device='quantum': use cpu, cuda"):
        ModelConfig(device="quantum")


def test_a_directory_without_a_pipeline_is_refused(tmp_path):
    with pytest.raises(ValueError, match="model_index.json"):
        load(ModelConfig(name=str(tmp_path)))


def test_noise_levels_need_no_weights_and_fetch_nothing(tmp_path):
    levels = noise_levels(ModelConfig(name="scenes"), 15)
    scheduler = schedule(load(ModelConfig(name="scenes", device="cpu")), 15)
    np.testing.assert_allclose(levels, scheduler.sigmas[:15], rtol=1e-6)
    assert noise_levels(ModelConfig(name=str(tmp_path)), 15) == ()
