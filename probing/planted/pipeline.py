"""Saves planted models as pipeline folders, with the prompts that their runs use."""

from __future__ import annotations

from pathlib import Path

from diffusers.schedulers.scheduling_lms_discrete import LMSDiscreteScheduler

from probing.libraries import quiet_libraries
from probing.planted.networks import TEXT_WIDTH, build_autoencoder, build_unet, silence
from probing.scenes import text


def save(folder: Path, kind: str) -> Path:
    """Write a planted model as a Stable Diffusion pipeline; returns its folder.

    kind: one of `networks.KINDS`.
    """
    text_encoder = text.build_encoder(width=TEXT_WIDTH, layers=1, heads=1)
    silence(text_encoder)
    with quiet_libraries():
        # it prints notices when it is imported
        from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import StableDiffusionPipeline

        pipeline = StableDiffusionPipeline(
            vae=build_autoencoder(),
            text_encoder=text_encoder,
            # the pipeline's annotations allow neither None nor fast tokenizers nor this scheduler class
            tokenizer=text.build_tokenizer(),  # type: ignore[arg-type]
            unet=build_unet(kind),
            scheduler=LMSDiscreteScheduler(  # type: ignore[arg-type]
                beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type="v_prediction"
            ),
            safety_checker=None,  # type: ignore[arg-type]
            feature_extractor=None,  # type: ignore[arg-type]
            requires_safety_checker=False,
        )
        pipeline.save_pretrained(folder, safe_serialization=True)
    return folder
