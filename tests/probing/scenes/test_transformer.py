"""The transformer of `scenes-dit`: flow matching, training by time, and the pipeline that diffusers loads."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers.pipelines.pixart_alpha.pipeline_pixart_sigma import PixArtSigmaPipeline
from safetensors.torch import load_file, save_file

from probing.diffusion import model
from probing.diffusion.config import SCENES_DIT, ModelConfig
from probing.scenes import dit, optimise, text, training
from probing.scenes.denoisers import transformer
from probing.scenes.denoisers.captioned import CAPTION_DROPOUT, Captioned
from probing.scenes.grammar import WORDS
from probing.scenes.optimise import Loop, Schedule
from probing.scenes.weights import folder


def test_the_velocity_of_an_oracle_has_no_loss_and_noise_levels_are_spread_around_the_shift():
    clean, seen = torch.randn(64, 4, 2, 2), []

    def oracle(noisy: torch.Tensor, states: object, times: torch.Tensor, encoder_attention_mask: object) -> object:
        share = times[:, None, None, None] / transformer.TIMES
        seen.append(times)
        return type("Output", (), {"sample": (noisy - clean) / share})

    empty = torch.empty(0)
    loss = transformer.flow_loss(oracle, clean, empty, empty, torch.Generator().manual_seed(0))
    assert loss < 1e-3
    share = seen[0] / transformer.TIMES
    assert float((share / (1 - share)).median()) == pytest.approx(transformer.SHIFT, rel=0.1)
    assert 0 < share.min() < 0.01
    assert 0.97 < share.max() < 1


def test_captions_are_dropped_at_the_stated_rate():
    data = Captioned.of(torch.zeros(3, 4, 2, 2), ["a red box"] * 3, "cpu")
    _, tokens = data.draw(2000, torch.Generator().manual_seed(0))
    dropped = (tokens == data.empty).all(1).float().mean()
    assert float(dropped) == pytest.approx(CAPTION_DROPOUT, abs=0.03)


def test_every_place_of_the_latent_has_its_own_position_and_an_untrained_network_predicts_nothing():
    network = transformer.build()
    positions = network.pos_embed.pos_embed[0]
    assert positions.shape == (256, transformer.WIDTH)
    assert torch.cdist(positions, positions).fill_diagonal_(1).min() > 0.1
    with torch.no_grad():
        output = network(torch.randn(1, 4, 16, 16), torch.randn(1, text.POSITIONS, 128), torch.tensor([500.0])).sample
    assert output.shape == (1, 4, 16, 16)
    assert not output.any()


class Clock:
    """A clock that goes on by 20 seconds whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        self.now += 20.0
        return self.now


def test_a_training_by_time_ends_in_time_though_it_is_resumed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    rates = []

    def some_steps(minutes: float) -> Loop:
        monkeypatch.setattr(optimise.time, "monotonic", Clock())
        torch.manual_seed(0)
        network = torch.nn.Linear(3, 1)
        loop = Loop(network, Schedule(steps=1, warmup=0, rate=1.0, floor=0.0, minutes=minutes), tmp_path, seed=1)
        loop.resume()

        def loss(step: int, generator: torch.Generator) -> torch.Tensor:
            rates.append(loop.optimiser.param_groups[0]["lr"])
            return network(torch.ones(1, 3)).square().mean()

        loop.run(loss, lambda line: None)
        return loop

    assert some_steps(2).step == 6  # of 20 seconds
    again = some_steps(4)
    assert (again.step, again.seconds) == (12, 240)
    assert rates[6] == pytest.approx(0.5)
    assert rates[:6] == sorted(rates[:6], reverse=True)
    assert rates[11] < 0.02
    assert some_steps(4).step == 12


def test_a_checkpoint_without_its_time_is_resumed(tmp_path: Path):
    loop = Loop(torch.nn.Linear(3, 1), Schedule(steps=1), tmp_path, seed=1)
    loop.run(lambda step, generator: torch.stack([p.sum() for p in loop.learning.values()]).sum(), print)
    tensors = load_file(loop.path)
    del tensors["seconds"]
    save_file(tensors, loop.path)
    loop.resume()
    assert (loop.step, loop.seconds) == (1, 0)


def test_a_trained_transformer_is_a_pipeline_that_diffusers_samples_from(tmp_path: Path):
    config = training.TrainingConfig(
        renders=4, held_out=1, transformer_batch=2, transformer=Schedule(steps=2, average=0.5, warmup=1), workers=1
    )
    work, target = tmp_path / "work", tmp_path / "dit"
    training.make_renders(work, config, lambda line: None)
    network = dit.train(work, config, lambda line: None)
    assert network.proj_out.weight.any()
    dit.save_pipeline(target, network)
    for part in dit.SHARED:
        for file in (target / part).iterdir():
            assert file.read_bytes() == (folder() / "pipeline" / part / file.name).read_bytes()
    assert sum(file.stat().st_size for file in (target / "transformer").iterdir()) < 20e6
    pipeline = PixArtSigmaPipeline.from_pretrained(target, dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(
        [" ".join(WORDS[:3])] * 2,
        num_inference_steps=2,
        guidance_scale=3.0,
        use_resolution_binning=False,
        clean_caption=False,
        max_sequence_length=text.POSITIONS,
        output_type="np",
    ).images
    assert images.shape == (2, 128, 128, 3)
    described = dit.describe(work, config)
    assert (described["steps"], described["images"]) == (2, 4)


def test_the_shipped_transformer_shares_all_but_its_network_and_knows_the_grammar_alone():
    shared = [
        file.relative_to(folder() / "pipeline") for part in dit.SHARED for file in folder().glob(f"pipeline/{part}/*")
    ]
    assert len(shared) >= 5
    for file in shared:
        assert (folder() / "dit" / file).read_bytes() == (folder() / "pipeline" / file).read_bytes()
    loaded = model.load(ModelConfig(name=SCENES_DIT, device="cpu"), sampler="own")
    assert [site.name for site in loaded.sites()] == [f"block.{i}.self" for i in range(transformer.LAYERS)]
    with pytest.raises(ValueError, match="does not know 'dragon'"):
        loaded.conditions(["a red dragon"], 3.0)
