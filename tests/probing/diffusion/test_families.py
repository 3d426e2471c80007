"""Each family of models against diffusers' own pipeline, with each kind of scheduler."""

from __future__ import annotations

import inspect
import json
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from probing.diffusion import metadata, schedules
from probing.diffusion.capture import capture
from probing.diffusion.config import ModelConfig
from probing.diffusion.families.layouts import layout
from probing.diffusion.families.registry import FAMILIES, family_of
from probing.diffusion.hooks import record, rewrite
from probing.diffusion.model import load, variant
from probing.diffusion.parts import weights
from probing.diffusion.replay import replay_network
from probing.diffusion.sampling import calls, noise_levels, sample, schedule
from probing.diffusion.sites import KINDS
from support import tiny_families

SEEDS, SIZE, STEPS = [3, 11], 32, 4
UNETS = {
    "2.x": tiny_families.second,
    "XL": tiny_families.extra_large,
    "LCM": tiny_families.consistency,
    "only cross": tiny_families.only_cross,
    "tiny VAE": tiny_families.tiny_autoencoder,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    made = {name: tmp_path_factory.mktemp("families") / name.replace(" ", "-") for name in tiny_families.TRANSFORMERS}
    for name, folder in made.items():
        tiny_families.save(name, folder)
    for name, build in UNETS.items():
        made[name] = tmp_path_factory.mktemp("families") / name
        build().save_pretrained(made[name])
    return made


def loaded(folders: dict[str, Path], name: str, sampler: str = "own") -> Any:
    size = 0 if name in UNETS else SIZE
    return load(ModelConfig(name=str(folders[name]), device="cpu", size=size), sampler=sampler)


def reference(folders: dict[str, Path], name: str, model: Any, guidance: float) -> np.ndarray:
    """Latents of diffusers' own pipeline, or DiT's images, which is all that it returns."""
    made = diffusers.DiffusionPipeline.from_pretrained(folders[name], safety_checker=None)
    made.set_progress_bar_config(disable=True)
    if model.sampler == schedules.LMS:
        made.scheduler = schedule(model, STEPS)
    elif model.sampler != schedules.OWN:
        made.scheduler = getattr(diffusers, model.sampler + "Scheduler").from_config(made.scheduler.config)
    options: dict[str, Any] = {
        "num_inference_steps": STEPS, "guidance_scale": guidance,
        "generator": [torch.Generator().manual_seed(seed) for seed in SEEDS],
    }  # fmt: skip
    prompts = tiny_families.prompts(name)
    if name == "DiT":
        return 255 * made(made.get_label_ids(prompts), output_type="np", **options).images
    if name in ("PixArt", "Sana"):
        options |= {"clean_caption": False, "use_resolution_binning": False}
    if name == "PixArt":
        options["max_sequence_length"] = model.encoder_length(300)
    if name not in UNETS:
        options |= {"height": SIZE, "width": SIZE}
    found = made(prompts, output_type="latent", **options).images
    if name == "FLUX":
        found = made._unpack_latents(found, SIZE, SIZE, made.vae_scale_factor)
    return found.numpy()


BETAS = ("own", "lms", "EulerDiscrete", "EulerAncestralDiscrete", "HeunDiscrete", "DDIM", "DPMSolverMultistep")
OTHERS = ("DDPM", "PNDM", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
CASES = [
    *(
        ("2.x", sampler)
        for sampler in (*BETAS, "DDPM", "PNDM", "DPMSolverSinglestep", "DEISMultistep", "UniPCMultistep")
    ),
    ("LCM", "own"),
    ("only cross", "lms"),
    ("tiny VAE", "own"),
    *(("XL", sampler) for sampler in ("EulerDiscrete", "DPMSolverMultistep")),
    *(("PixArt", sampler) for sampler in BETAS),
    *(("DiT", sampler) for sampler in ("own", "DPMSolverMultistep")),
    *(("Stable Diffusion 3", sampler) for sampler in ("own", "FlowMatchHeunDiscrete")),
    ("FLUX", "own"),
    *(("Sana", sampler) for sampler in ("own", "FlowMatchEulerDiscrete")),
]


@pytest.mark.parametrize(("name", "sampler"), CASES)
def test_latents_equal_the_pipelines_own(folders, name, sampler):
    model = loaded(folders, name, sampler)
    seen = []
    samples = sample(
        model,
        tiny_families.prompts(name),
        SEEDS,
        steps=STEPS,
        guidance=2.5,
        on_step=lambda event: seen.append((event.step, event.level)),
    )
    assert [step for step, _ in seen] == list(range(1, calls(model, STEPS) + 1))
    config = ModelConfig(name=str(folders[name]), device="cpu", size=model.size)
    assert [level for _, level in seen] == noise_levels(config, sampler, STEPS)  # without weights
    found = samples.images.numpy() if name == "DiT" else samples.latents.numpy()
    expected = reference(folders, name, model, 2.5)
    assert expected.std() > 0.1
    if name == "DiT":
        assert np.abs(found - expected).max() <= 1
    else:
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-4 * expected.std())


def test_a_sample_does_not_depend_on_its_batch_with_a_sampler_that_adds_noise(folders):
    model = loaded(folders, "2.x", "EulerAncestralDiscrete")
    prompts = tiny_families.prompts("2.x")
    both = sample(model, prompts, SEEDS, steps=STEPS, guidance=2.0, decode=False).latents
    alone = sample(model, prompts[1:], SEEDS[1:], steps=STEPS, guidance=2.0, decode=False).latents
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


PREDICTIONS = {"betas": ("epsilon", "v_prediction", "sample"), "flow": ("flow_prediction",), "edm": ("epsilon",)}


@pytest.mark.parametrize("kind", schedules.KINDS)
def test_the_clean_estimate_is_what_a_perfect_network_knows(kind):
    training = schedules.KINDS[kind].training
    options = [("betas", p, {}) for p in PREDICTIONS["betas"]] if training in ("betas", "solver") else []
    if training == "solver":
        flow = {"use_flow_sigmas": True, "flow_shift": 2.0}
        options += [("flow", "flow_prediction", flow)] if kind != "DEISMultistep" else []
    if training in ("flow", "edm"):
        options = [(training, PREDICTIONS[training][0], {})]
    random = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn((2, 4, 3, 3), generator=random) for _ in range(2))
    for trained, prediction, more in options:
        takes = {"prediction_type": prediction} if training != "flow" else {}
        try:
            scheduler = getattr(diffusers, f"{kind}Scheduler")(**takes, **more)
            scheduler.set_timesteps(STEPS)
        except (NotImplementedError, ValueError):
            assert prediction == "sample", kind  # a class that does not know it refuses it
            continue
        config = {"_class_name": f"{kind}Scheduler", "skip_prk_steps": False}
        assert schedules.calls("own", STEPS, config) == len(scheduler.timesteps)
        for index, level in enumerate(schedules.levels(scheduler)):
            alpha, sigma = schedules.own_scale(scheduler, index)
            latents = alpha * clean + sigma * noise
            if not more and kind != "HeunDiscrete" and hasattr(scheduler, "scale_model_input") and trained == "betas":
                time = scheduler.timesteps[index : index + 1]
                if schedules.KINDS[kind].levels == "times":
                    torch.testing.assert_close(scheduler.add_noise(clean, noise, time), latents, atol=1e-5, rtol=1e-5)
            inputs = level.alpha * clean + level.sigma * noise
            output = {
                "epsilon": noise, "v_prediction": level.alpha * noise - level.sigma * clean,
                "flow_prediction": noise - clean, "sample": clean,
            }[prediction]  # fmt: skip
            if trained == "edm":
                # its network predicts the clean latents through the preconditioning
                skip = scheduler.precondition_outputs(latents, torch.zeros_like(latents), scheduler.sigmas[index])
                gain = scheduler.precondition_outputs(torch.zeros(1), torch.ones(1), scheduler.sigmas[index])
                output = (clean - skip) / gain
            found = schedules.clean_estimate(scheduler, index, level, latents, inputs, output)
            torch.testing.assert_close(found, clean, atol=2e-4 / max(level.alpha, 0.02), rtol=1e-4)


@pytest.mark.parametrize("sampler", ["EulerDiscrete", "EulerAncestralDiscrete", "DDIM", "lms", "DPMSolverMultistep"])
def test_the_clean_estimate_equals_the_schedulers_own(folders, sampler):
    model = loaded(folders, "2.x", sampler)
    model.scheduler_config["clip_sample"] = False  # which would clip the scheduler's own
    own, found = [], []

    def note(scheduler: Any) -> Any:
        step, convert = scheduler.step, getattr(scheduler, "convert_model_output", None)

        def stepped(output: Any, time: Any, latents: Any, **options: Any) -> Any:
            result = step(output, time, latents, **options)
            if convert is None:
                own.append(result.pred_original_sample)
            return result

        def converted(output: Any, *args: Any, **options: Any) -> Any:
            own.append(convert(output, *args, **options))
            return own[-1]

        scheduler.step = stepped
        stepped.__signature__ = inspect.signature(step)  # type: ignore[attr-defined]
        if convert:
            scheduler.convert_model_output = converted
        return scheduler

    from probing.diffusion import sampling

    plain = sampling.schedule
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sampling, "schedule", lambda *args: note(plain(*args)))
        sample(
            model, ["a red box"], [3], steps=STEPS, guidance=2.0, on_step=lambda e: found.append(e.clean), decode=False
        )
    assert len(own) == len(found) == STEPS
    for mine, theirs in zip(found, own, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-5 * float(theirs.std()), rtol=1e-5)


TRANSFORMERS = list(tiny_families.TRANSFORMERS)
WITH_SITES = [*TRANSFORMERS, "2.x", "XL", "only cross"]


def parts(output: Any, site: Any) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The text that a module returns, and its image as (n, tokens, channels)."""
    *text, image = output if isinstance(output, tuple) else (output,)
    if image.ndim == 4:
        return [], torch.stack([image[:, :, i // site.width, i % site.width] for i in range(site.tokens)], dim=1)
    before = image.shape[1] - site.tokens
    return [*filter(lambda x: x is not None, text), image[:, :before]], image[:, before:]


@contextmanager
def outputs(network: Any, site: Any, into: list):
    """A plain hook that keeps a module's outputs."""

    def keep(_module: Any, _inputs: Any, output: Any) -> None:
        text, image = parts(output, site)
        into.append([x.detach().clone() for x in (*text, image)])

    handle = network.get_submodule(site.module).register_forward_hook(keep)
    yield
    handle.remove()


@pytest.mark.parametrize("name", WITH_SITES)
def test_sites_are_what_the_network_runs_and_all_its_attention_to_places(folders, name):
    model, guidance = loaded(folders, name), 2.0
    copies = 2 if model.doubles(guidance) else 1
    sites, seen, plain = model.recordable, [], {site.name: [] for site in model.recordable}
    with ExitStack() as stack:
        for site in sites:
            stack.enter_context(outputs(model.network, site, plain[site.name]))
        stack.enter_context(record(model.network, sites, lambda site, output: seen.append((site, output.clone()))))
        sample(model, tiny_families.prompts(name), SEEDS, steps=1, guidance=guidance, decode=False)
    assert [site for site, _ in seen] == list(sites)
    for site, output in seen:
        assert output.shape == (copies * 2, site.tokens, site.channels)
        ((*_, image),) = plain[site.name]
        torch.testing.assert_close(output, image, rtol=0, atol=0)
    kinds = {"DiT": {"cross"}, "Stable Diffusion 3": {"cross"}, "FLUX": {"cross"}}
    assert {site.family for site in sites} == set(KINDS) - kinds.get(name, set())
    walked = {
        n for n, m in model.network.named_modules()
        if n.rsplit(".", 1)[-1] in ("attn1", "attn") and not getattr(m, "is_cross_attention", False)
    }  # fmt: skip
    own = {site.module.removesuffix(".to_out.0") for site in model.sites()}
    assert own - {path for path in own if path.endswith("attn2")} == walked


def test_a_blocks_output_is_the_one_before_and_what_its_layers_add(folders):
    model, seen = loaded(folders, "XL"), {}
    with record(model.network, model.recordable, lambda site, output: seen.__setitem__(site.name, output.clone())):
        sample(model, tiny_families.prompts("XL"), SEEDS, steps=1, guidance=1.0, decode=False)
    added = sum(seen[f"mid.0.2{kind}"] for kind in ("", ".cross", ".mlp"))
    torch.testing.assert_close(seen["mid.0.2.residual"] - seen["mid.0.1.residual"], added, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", WITH_SITES)
def test_capture_and_replay_read_the_same_and_an_edit_leaves_text_and_the_other_half_alone(folders, name):
    model, prompts = loaded(folders, name), tiny_families.prompts(name)
    sites, recorded, entered = model.recordable, {}, {}

    def keep(site: str, step: int, values: np.ndarray) -> None:
        recorded[site, step] = values.copy()

    capture(model, prompts, SEEDS, sites, keep, steps=STEPS, guidance=2.0)
    assert set(recorded) == {(site.name, step) for site in sites for step in range(1, STEPS + 1)}
    plain = sample(
        model, prompts, SEEDS, steps=STEPS, guidance=2.0, decode=False,
        on_step=lambda event: entered.__setitem__(event.step, event.before.clone()),
    )  # fmt: skip
    again: dict[str, np.ndarray] = {}
    condition = model.conditions(prompts, 2.0, conditional_only=True)
    replay_network(model, condition, entered[3], 3, STEPS, sites, again.__setitem__)
    for site in sites:
        expected = recorded[site.name, 3].astype(np.float32)
        np.testing.assert_allclose(again[site.name].astype(np.float32), expected, rtol=1e-2, atol=1e-2 * expected.std())
    # each step edits the last site of another kind
    last = {step: site for step, site in enumerate({site.family: site for site in sites}.values(), 1)}
    before: dict[int, list] = {step: [] for step in last}
    after: dict[int, list] = {step: [] for step in last}

    @contextmanager
    def edited(step: int):
        if step not in last:
            yield
            return
        with (
            outputs(model.network, last[step], before[step]),
            rewrite(model.network, (last[step],), lambda _, acts: acts + 5, guided=model.doubles(2.0)),
            outputs(model.network, last[step], after[step]),
        ):
            yield

    changed = sample(model, prompts, SEEDS, steps=STEPS, guidance=2.0, decode=False, around=edited)
    assert not torch.allclose(changed.latents, plain.latents, atol=1e-3)
    for step in last:
        ((*text, was),), ((*same, now),) = before[step], after[step]
        half = len(was) // 2 if model.doubles(2.0) else 0
        assert torch.equal(was[:half], now[:half])
        assert len(text) == len(same)
        assert all(map(torch.equal, text, same))
        torch.testing.assert_close(now[half:], was[half:] + 5)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_random_variants_differ_and_share_all_but_the_network(folders, name):
    model = loaded(folders, name)
    random = variant(model, "random", 100)
    assert random.vae is model.vae
    own, other = (
        sample(m, tiny_families.prompts(name), SEEDS, steps=2, guidance=2.0, decode=False) for m in (model, random)
    )
    assert torch.isfinite(other.latents).all()
    assert not torch.allclose(own.latents, other.latents, atol=1e-3)
    fresh = variant(model, "reinit", 100)
    assert {k: v.shape for k, v in fresh.network.state_dict().items()} == {
        k: v.shape for k, v in model.network.state_dict().items()
    }


# As their public files have them; fields at the classes' defaults are left out.
PUBLIC: dict[str, tuple[str, str, dict[str, Any], dict[str, Any], tuple[int, int, int, tuple[int, int]]]] = {
    "SD3.5-large": ("StableDiffusion3Pipeline", "SD3Transformer2DModel",
                    {"num_layers": 38, "num_attention_heads": 38, "attention_head_dim": 64, "sample_size": 128,
                     "in_channels": 16, "out_channels": 16, "caption_projection_dim": 2432, "qk_norm": "rms_norm",
                     "pos_embed_max_size": 192, "joint_attention_dim": 4096, "pooled_projection_dim": 2048},
                    {"block_out_channels": [128, 256, 512, 512]}, (38, 4096, 2432, (1024, 1024))),
    "FLUX.1-dev": ("FluxPipeline", "FluxTransformer2DModel", {"guidance_embeds": True},
                   {"block_out_channels": [128, 256, 512, 512]}, (57, 4096, 3072, (1024, 1024))),
    "PixArt-sigma": ("PixArtSigmaPipeline", "PixArtTransformer2DModel", {"sample_size": 128, "caption_channels": 4096},
                     {"block_out_channels": [128, 256, 512, 512]}, (28, 4096, 1152, (1024, 1024))),
    "Sana": ("SanaPipeline", "SanaTransformer2DModel", {"sample_size": 32},
             {"_class_name": "AutoencoderDC", "encoder_block_out_channels": [128, 256, 512, 512, 1024, 1024]},
             (20, 1024, 2240, (1024, 1024))),
    "DiT-XL": ("DiTPipeline", "DiTTransformer2DModel", {"sample_size": 32},
               {"block_out_channels": [128, 256, 512, 512]}, (28, 256, 1152, (256, 256))),
    "SDXL": ("StableDiffusionXLPipeline", "UNet2DConditionModel", tiny_families.XL,
             {"block_out_channels": [128, 256, 512, 512]}, (70, 4096, 640, (1024, 1024))),
    "SSD-1B": ("StableDiffusionXLPipeline", "UNet2DConditionModel",
               tiny_families.XL | {"transformer_layers_per_block": [0, [2, 2], [4, 4]], "mid_block_type": None,
                                   "reverse_transformer_layers_per_block": [[4, 4, 10], [2, 1, 1], 1]},
               {"block_out_channels": [128, 256, 512, 512]}, (34, 4096, 640, (1024, 1024))),
    "only cross": ("StableDiffusionPipeline", "UNet2DConditionModel",
                   tiny_families.V14 | {"only_cross_attention": [True, False, False, False]},
                   {"block_out_channels": [128, 256, 512, 512]}, (11, 1024, 640, (512, 512))),
}  # fmt: skip


@pytest.mark.parametrize("name", PUBLIC)
def test_sites_of_public_models_from_their_configurations_are_those_of_their_networks(name):
    pipeline, kind, network, vae, (count, tokens, channels, image) = PUBLIC[name]
    found = layout(family_of(pipeline), network, vae)
    sites = found.families["attention"]
    assert (len(sites), sites[0].tokens, sites[0].channels, found.image) == (count, tokens, channels, image)
    with torch.device("meta"):
        built = getattr(diffusers, kind)(**network)
    modules = dict(built.named_modules())
    walked = {
        path for path, module in modules.items()
        if path.rsplit(".", 1)[-1] in ("attn1", "attn") and not getattr(module, "is_cross_attention", False)
    }  # fmt: skip
    assert {site.module.removesuffix(".to_out.0") for site in sites} == walked
    for site in sites:
        module = modules[site.module]
        width = getattr(module, "out_features", None) or module.out_dim
        assert width == site.channels
    for family, others in found.families.items():
        assert family == "vae" or all(site.module in modules for site in others)


def test_every_pipeline_has_one_family_and_its_classes_exist():
    for family in FAMILIES:
        for name in (*family.pipelines, *family.networks, *family.vaes):
            assert hasattr(diffusers, name), name


@pytest.mark.parametrize(
    ("name", "file", "change", "expected"),
    [
        ("FLUX", "model_index.json", {"_class_name": ["x", "FluxControlPipeline"]}, "supported pipelines"),
        ("FLUX", "model_index.json", {"transformer": None}, "names no library and class"),
        ("FLUX", "model_index.json", {"controlnet": ["diffusers", "ControlNetModel"]}, "would be lost"),
        ("PixArt", "transformer/config.json", {"num_layers": "three"}, "num_layers='three'"),
        ("PixArt", "transformer/config.json", {"sample_size": None}, "sample_size=None"),
        ("PixArt", "transformer/config.json", {"_class_name": "UNet2DModel"}, "_class_name=UNet2DModel"),
        ("Sana", "vae/config.json", {"_class_name": "AutoencoderKL"}, "_class_name=AutoencoderKL"),
        ("Stable Diffusion 3", "scheduler/scheduler_config.json", {"_class_name": "RePaintScheduler"}, "RePaint"),
        ("DiT", "scheduler/scheduler_config.json", {"prediction_type": "score"}, "prediction_type"),
        ("DiT", "model_index.json", {"id2label": []}, "id2label"),
        ("FLUX", "scheduler/scheduler_config.json", {"shift": "3"}, 'shift="3" is not supported'),
        ("FLUX", "scheduler/scheduler_config.json", {"a_field_of_tomorrow": 1}, "would be lost"),
        ("PixArt", "scheduler/scheduler_config.json", {"thresholding": "no"}, 'thresholding="no" is not supported'),
        ("PixArt", "vae/config.json", {"latents_mean": [0.0] * 4}, "latents_mean"),
        ("PixArt", "vae/config.json", {"scaling_factor": "text"}, "scaling_factor"),
        ("PixArt", "vae/config.json", {"up_block_types": ["UpDecoderBlock2D"]}, "up_block_types has 1 values"),
        ("Stable Diffusion 3", "vae/config.json", {"layers_per_block": 2}, "lacks encoder.down_blocks.0.resnets.1"),
    ],
)
def test_a_directory_that_cannot_be_run_is_one_line_before_any_work(folders, tmp_path, name, file, change, expected):
    import shutil

    shutil.copytree(folders[name], tmp_path / "model")
    path = tmp_path / "model" / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    config = ModelConfig(name=str(tmp_path / "model"), device="cpu", size=SIZE)
    with pytest.raises(ValueError, match="model.name") as caught:
        metadata.check(config, "own", STEPS)
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_sampler_that_does_not_fit_the_model_is_refused(folders):
    with pytest.raises(ValueError, match="flow matching, which sampling.scheduler=lms cannot; set"):
        metadata.check(ModelConfig(name=str(folders["FLUX"]), size=SIZE), "lms", STEPS)
    with pytest.raises(ValueError, match="betas, which sampling.scheduler=FlowMatchEulerDiscrete cannot"):
        metadata.check(ModelConfig(name=str(folders["2.x"])), "FlowMatchEulerDiscrete", STEPS)


def test_images_of_a_tiny_autoencoder_are_the_pipelines_own(folders):
    model = loaded(folders, "tiny VAE")
    made = diffusers.DiffusionPipeline.from_pretrained(folders["tiny VAE"], safety_checker=None)
    latents = sample(model, ["a red box"], [3], steps=2, guidance=2.0, decode=False).latents
    pixels = made.vae.decode(latents / made.vae.config.scaling_factor, return_dict=False)[0]
    expected = 255 * made.image_processor.postprocess(pixels.detach(), output_type="np")
    assert np.abs(model.decode(latents).numpy() - expected).max() <= 0.5 + 1e-3
    assert expected.shape[1:3] == model.image_size


def test_attention_to_the_text_alone_is_no_site(folders):
    names = [site.name for site in loaded(folders, "only cross").sites()]
    assert names == [
        site.name for site in loaded(folders, "2.x").sites() if not site.name.startswith(("down.0", "up.3"))
    ]


def test_class_names_are_the_prompts_of_a_model_of_classes(folders):
    with pytest.raises(ValueError, match="'red bix': not a class of this model; did you mean 'red box'"):
        loaded(folders, "DiT").conditions(["red bix"], 2.0)


def test_a_variant_of_the_weights_is_loaded_and_belongs_to_the_run(folders, tmp_path):
    folder = tmp_path / "two"
    made = diffusers.DiffusionPipeline.from_pretrained(folders["2.x"], safety_checker=None)
    made.save_pretrained(folder)
    with torch.no_grad():
        made.unet.conv_in.bias += 1
    made.save_pretrained(folder, variant="fp16")
    main, half = (load(ModelConfig(name=str(folder), device="cpu", variant=v)) for v in ("", "fp16"))
    torch.testing.assert_close(half.network.conv_in.bias, main.network.conv_in.bias + 1)
    files = [set(metadata.model_files(ModelConfig(name=str(folder), variant=v))) for v in ("", "fp16")]
    assert "unet/diffusion_pytorch_model.fp16.safetensors" in files[1] - files[0]
    assert weights.weight_files(folder / "unet", "none") == weights.weight_files(folder / "unet")
