"""Narrow random pipelines of the other families, Stable Diffusion 2.x and XL, and full-size configurations."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from diffusers import (
    AutoencoderDC,
    AutoencoderKL,
    AutoencoderTiny,
    DDIMScheduler,
    DiTPipeline,
    DiTTransformer2DModel,
    DPMSolverMultistepScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    LatentConsistencyModelPipeline,
    LCMScheduler,
    LMSDiscreteScheduler,
    PixArtSigmaPipeline,
    PixArtTransformer2DModel,
    SanaPipeline,
    SanaTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    Gemma2Config,
    Gemma2Model,
    T5Config,
    T5EncoderModel,
)

from probing.scenes import text

V14: dict[str, Any] = {
    "sample_size": 64, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768, "attention_head_dim": 8,
}  # fmt: skip
V14_VAE: dict[str, Any] = {
    "sample_size": 512, "latent_channels": 4, "block_out_channels": [128, 256, 512, 512], "layers_per_block": 2,
    "down_block_types": ["DownEncoderBlock2D"] * 4, "up_block_types": ["UpDecoderBlock2D"] * 4,
    "scaling_factor": 0.18215,
}  # fmt: skip
V21: dict[str, Any] = V14 | {
    "sample_size": 96, "cross_attention_dim": 1024, "attention_head_dim": [5, 10, 20, 20],
    "use_linear_projection": True,
}  # fmt: skip
XL: dict[str, Any] = {
    "sample_size": 128, "in_channels": 4, "out_channels": 4, "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280], "transformer_layers_per_block": [1, 2, 10],
    "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"],
    "up_block_types": ["CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"],
    "cross_attention_dim": 2048, "attention_head_dim": [5, 10, 20], "use_linear_projection": True,
    "addition_embed_type": "text_time", "addition_time_embed_dim": 256, "projection_class_embeddings_input_dim": 2816,
}  # fmt: skip


def scheduler(prediction: str) -> LMSDiscreteScheduler:
    return LMSDiscreteScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", prediction_type=prediction, steps_offset=1
    )


def _encoder(kind: Any, width: int, tokenizer: Any) -> Any:
    config = CLIPTextConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=2 * width, num_hidden_layers=2,
        num_attention_heads=2, max_position_embeddings=tokenizer.model_max_length, projection_dim=width,
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, bos_token_id=tokenizer.bos_token_id,
    )  # fmt: skip
    return kind(config).eval()


def _vae() -> AutoencoderKL:
    return AutoencoderKL(**V14_VAE | {"block_out_channels": [8, 8, 16, 16], "norm_num_groups": 4}).eval()


def second(prediction: str = "v_prediction", **options: Any) -> StableDiffusionPipeline:
    """Stable Diffusion 2.x, narrow: linear projections, heads by block, velocity; options: of the UNet."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    unet = UNet2DConditionModel(
        **V21 | options | {"sample_size": 16,
                 "block_out_channels": [16, 16, 32, 32], "attention_head_dim": [2, 2, 4, 4],
                 "cross_attention_dim": 24, "norm_num_groups": 8}
    )  # fmt: skip
    return StableDiffusionPipeline(
        vae=_vae(), text_encoder=_encoder(CLIPTextModel, 24, tokenizer), tokenizer=tokenizer, unet=unet.eval(),
        scheduler=scheduler(prediction), safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def consistency() -> LatentConsistencyModelPipeline:
    """A latent consistency model, narrow: the UNet is told the guidance."""
    made = second("epsilon", time_cond_proj_dim=32)
    return LatentConsistencyModelPipeline(
        vae=made.vae, text_encoder=made.text_encoder, tokenizer=made.tokenizer, unet=made.unet,
        scheduler=LCMScheduler.from_config(made.scheduler.config), safety_checker=None, feature_extractor=None,
        requires_safety_checker=False,
    )  # fmt: skip


def only_cross() -> StableDiffusionPipeline:
    """Blocks whose `attn1` looks at the text, in the outermost level."""
    return second(only_cross_attention=[True, False, False, False])


def tiny_autoencoder() -> StableDiffusionPipeline:
    """An AutoencoderTiny in the place of the usual one."""
    made = second()
    torch.manual_seed(3)
    made.register_modules(vae=AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    ).eval())  # fmt: skip
    return made


def extra_large(zeros: bool = True) -> StableDiffusionXLPipeline:
    """XL, narrow: two text encoders, pooled text, several transformer layers in a block."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    unet = UNet2DConditionModel(
        **XL | {"sample_size": 16, "block_out_channels": [16, 32, 32], "transformer_layers_per_block": [1, 2, 3],
                "attention_head_dim": [2, 4, 4], "cross_attention_dim": 24 + 32, "norm_num_groups": 8,
                "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 32 + 6 * 8}
    )  # fmt: skip
    return StableDiffusionXLPipeline(
        vae=_vae(), text_encoder=_encoder(CLIPTextModel, 24, tokenizer),
        text_encoder_2=_encoder(CLIPTextModelWithProjection, 32, tokenizer), tokenizer=tokenizer,
        tokenizer_2=tokenizer, unet=unet.eval(), scheduler=scheduler("epsilon"),
        force_zeros_for_empty_prompt=zeros, add_watermarker=False,
    )  # fmt: skip


def _transformer_vae(channels: int, **options: Any) -> AutoencoderKL:
    torch.manual_seed(5)
    sizes = {"block_out_channels": [8, 16], "norm_num_groups": 4, "layers_per_block": 1, "latent_channels": channels,
             "down_block_types": ["DownEncoderBlock2D"] * 2, "up_block_types": ["UpDecoderBlock2D"] * 2}  # fmt: skip
    return AutoencoderKL(**V14_VAE | sizes | options).eval()


def _t5(width: int, tokenizer: Any) -> T5EncoderModel:
    config = T5Config(vocab_size=len(tokenizer), d_model=width, d_kv=8, d_ff=2 * width, num_layers=1, num_heads=2,
                      pad_token_id=tokenizer.pad_token_id)  # fmt: skip
    return T5EncoderModel(config).eval()


FLOW: dict[str, Any] = {"shift": 3.0}
PLAIN_BETAS = {"beta_start": 0.0001, "beta_end": 0.02, "beta_schedule": "linear"}


def stable_diffusion_3(dual: bool = True) -> StableDiffusion3Pipeline:
    """Stable Diffusion 3, narrow: three text encoders; with `dual`, a second self-attention in one block (3.5)."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    transformer = SD3Transformer2DModel(
        sample_size=16, patch_size=2, in_channels=8, out_channels=8, num_layers=3, attention_head_dim=8,
        num_attention_heads=3, joint_attention_dim=56, caption_projection_dim=24, pooled_projection_dim=24 + 32,
        pos_embed_max_size=64, qk_norm="rms_norm", dual_attention_layers=(1,) if dual else (),
    )  # fmt: skip
    return StableDiffusion3Pipeline(
        transformer=transformer.eval(), scheduler=FlowMatchEulerDiscreteScheduler(**FLOW),
        vae=_transformer_vae(8, scaling_factor=1.5, shift_factor=0.06),
        text_encoder=_encoder(CLIPTextModelWithProjection, 24, tokenizer), tokenizer=tokenizer,
        text_encoder_2=_encoder(CLIPTextModelWithProjection, 32, tokenizer), tokenizer_2=tokenizer,
        text_encoder_3=_t5(56, tokenizer), tokenizer_3=tokenizer,
    )  # fmt: skip


def flux(guidance: bool = True) -> FluxPipeline:
    """FLUX, narrow, with latents of 16 x 16; `guidance`: with embedded guidance (dev), else without (schnell)."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=32, num_layers=2, num_single_layers=2, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=40, pooled_projection_dim=24, guidance_embeds=guidance, axes_dims_rope=(4, 6, 6),
    )  # fmt: skip
    scheduler = FlowMatchEulerDiscreteScheduler(
        use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256, max_image_seq_len=4096
    )
    return FluxPipeline(
        transformer=transformer.eval(), scheduler=scheduler,
        vae=_transformer_vae(8, scaling_factor=0.36, shift_factor=0.11),
        text_encoder=_encoder(CLIPTextModel, 24, tokenizer), tokenizer=tokenizer,
        text_encoder_2=_t5(40, tokenizer), tokenizer_2=tokenizer,
    )  # fmt: skip


def pixart() -> PixArtSigmaPipeline:
    """PixArt-sigma, narrow, with learned variances."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    transformer = PixArtTransformer2DModel(
        sample_size=16, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        out_channels=8, cross_attention_dim=24, caption_channels=40, norm_num_groups=1, interpolation_scale=1,
        use_additional_conditions=False,
    )  # fmt: skip
    _randomise(transformer)
    return PixArtSigmaPipeline(
        transformer=transformer.eval(), vae=_transformer_vae(4), text_encoder=_t5(40, tokenizer), tokenizer=tokenizer,
        scheduler=DPMSolverMultistepScheduler(**PLAIN_BETAS),
    )  # fmt: skip


def sana() -> SanaPipeline:
    """Sana, narrow: linear attention, a deep autoencoder, Gemma's text states."""
    torch.manual_seed(0)
    tokenizer = text.build_tokenizer()
    transformer = SanaTransformer2DModel(
        patch_size=1, in_channels=4, out_channels=4, num_layers=2, num_attention_heads=2, attention_head_dim=12,
        num_cross_attention_heads=2, cross_attention_head_dim=12, cross_attention_dim=24, caption_channels=32,
        sample_size=16,
    )  # fmt: skip
    _randomise(transformer)
    gemma = Gemma2Model(Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, head_dim=16, pad_token_id=tokenizer.pad_token_id,
    ))  # fmt: skip
    vae = AutoencoderDC(
        latent_channels=4, attention_head_dim=2, encoder_block_types=("ResBlock", "EfficientViTBlock"),
        decoder_block_types=("ResBlock", "EfficientViTBlock"), encoder_block_out_channels=(8, 8),
        decoder_block_out_channels=(8, 8), encoder_qkv_multiscales=((), (5,)), decoder_qkv_multiscales=((), (5,)),
        encoder_layers_per_block=(1, 1), decoder_layers_per_block=[1, 1], downsample_block_type="conv",
        upsample_block_type="interpolate", decoder_norm_types="rms_norm", decoder_act_fns="silu", scaling_factor=0.41,
    )  # fmt: skip
    scheduler = DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0, num_train_timesteps=1000
    )
    return SanaPipeline(
        tokenizer=tokenizer, text_encoder=gemma.eval(), vae=vae.eval(), transformer=transformer.eval(),
        scheduler=scheduler,
    )  # fmt: skip


CLASSES = ("red box", "blue sphere", "green cone", "red cone", "blue box", "green sphere", "white box", "white cone")


def class_conditional() -> DiTPipeline:
    """DiT, narrow, with the numbers of classes that its pipeline assumes and names for three of them."""
    torch.manual_seed(0)
    transformer = DiTTransformer2DModel(
        sample_size=16, num_layers=3, patch_size=2, attention_head_dim=8, num_attention_heads=3, in_channels=4,
        out_channels=8, num_embeds_ada_norm=1000, norm_elementwise_affine=False, activation_fn="gelu-approximate",
    )  # fmt: skip
    _randomise(transformer)
    return DiTPipeline(
        transformer=transformer.eval(), vae=_transformer_vae(4), scheduler=DDIMScheduler(clip_sample=False),
        id2label=dict(enumerate(CLASSES)),
    )  # fmt: skip


def _randomise(network: torch.nn.Module) -> None:
    """Give zero-initialised layers values, so that every block has an effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in network.parameters():
            if not parameter.any():
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))


TRANSFORMERS = {
    "Stable Diffusion 3": stable_diffusion_3,
    "FLUX": flux,
    "PixArt": pixart,
    "Sana": sana,
    "DiT": class_conditional,
}
"""narrow pipelines of the transformer families, by name; `vae` shrinks by 2, so that images have 32 x 32 pixels"""


def save(name: str, folder: Path) -> Path:
    """A narrow pipeline of a transformer family as a directory."""
    TRANSFORMERS[name]().save_pretrained(folder)
    if name == "DiT":  # in the index of the public models, though diffusers does not write it
        index = json.loads((folder / "model_index.json").read_text())
        index["id2label"] = {str(i): label for i, label in enumerate(CLASSES)}
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def prompts(name: str) -> list[str]:
    """Two prompts that a family knows."""
    return ["red box", "green cone"] if name == "DiT" else ["a red box", "a blue sphere"]
