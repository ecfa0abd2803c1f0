"""Tiny diffusers pipelines with random weights, built from config: Stable Diffusion 1.5, 3 and FLUX."""

import json
from pathlib import Path

import torch
from diffusers import (
    AutoencoderKL,
    DDIMScheduler,
    EulerDiscreteScheduler,
    FlowMatchEulerDiscreteScheduler,
    FluxPipeline,
    FluxTransformer2DModel,
    SD3Transformer2DModel,
    StableDiffusion3Pipeline,
    StableDiffusionPipeline,
    StableDiffusionXLPipeline,
    UNet2DConditionModel,
)
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPTextModelWithProjection,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
    T5Config,
    T5EncoderModel,
)


WORDS = ["a", "red", "blue", "fox", "boat", "in", "the", "snow"]
TARGETS = ["to_q", "to_k", "to_v", "to_out.0"]


def clip_tokenizer(folder: Path) -> CLIPTokenizer:
    folder.mkdir(parents=True, exist_ok=True)
    words = ["<|startoftext|>", "<|endoftext|>", *(f"{word}</w>" for word in WORDS)]
    letters = sorted({letter for word in WORDS for letter in word})
    vocabulary = {word: i for i, word in enumerate([*words, *letters, *(f"{letter}</w>" for letter in letters)])}
    (folder / "vocab.json").write_text(json.dumps(vocabulary))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer(str(folder / "vocab.json"), str(folder / "merges.txt"), model_max_length=12)


def _clip_config(size: int = 32) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=100, hidden_size=size, intermediate_size=37, num_hidden_layers=2, num_attention_heads=4,
        max_position_embeddings=12, bos_token_id=0, eos_token_id=1, pad_token_id=1, projection_dim=32,
    )  # fmt: skip


def _t5() -> tuple[T5EncoderModel, PreTrainedTokenizerFast]:
    vocabulary = {word: i for i, word in enumerate(["<pad>", "</s>", "<unk>", *WORDS])}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    config = T5Config(vocab_size=32, d_model=32, d_kv=8, d_ff=37, num_layers=2, num_heads=4)
    return T5EncoderModel(config), PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>", model_max_length=12
    )


def _vae(channels: int, shift: float | None) -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=[8, 8], norm_num_groups=4, in_channels=3, out_channels=3, latent_channels=channels,
        down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2, sample_size=16,
        shift_factor=shift, scaling_factor=1.5, use_quant_conv=shift is None, use_post_quant_conv=shift is None,
    )  # fmt: skip


def stable_diffusion(folder: Path, scheduler: type = DDIMScheduler) -> StableDiffusionPipeline:
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32, attention_head_dim=2, norm_num_groups=4,
    )  # fmt: skip
    return StableDiffusionPipeline(
        unet=unet,
        scheduler=scheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", steps_offset=1, set_alpha_to_one=False,
            **({"clip_sample": False} if scheduler is DDIMScheduler else {}),
        ),
        vae=_vae(4, None), text_encoder=CLIPTextModel(_clip_config()), tokenizer=clip_tokenizer(folder / "clip"),
        safety_checker=None, feature_extractor=None, requires_safety_checker=False,
    )  # fmt: skip


def stable_diffusion_xl(folder: Path) -> StableDiffusionXLPipeline:
    """With Euler's scheduler, as it comes, and a VAE whose latents have a mean and a deviation for each channel."""
    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        block_out_channels=(8, 16), layers_per_block=1, sample_size=8, in_channels=4, out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"), up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=64, attention_head_dim=2, norm_num_groups=4, use_linear_projection=True,
        addition_embed_type="text_time", addition_time_embed_dim=8, projection_class_embeddings_input_dim=6 * 8 + 32,
    )  # fmt: skip
    vae = _vae(4, None)
    vae.register_to_config(latents_mean=[0.1, -0.2, 0.3, 0.0], latents_std=[1.5, 0.5, 1.0, 2.0])
    tokenizer = clip_tokenizer(folder / "clip")
    return StableDiffusionXLPipeline(
        unet=unet, scheduler=EulerDiscreteScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear"),
        vae=vae, text_encoder=CLIPTextModel(_clip_config()), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()), tokenizer_2=tokenizer, add_watermarker=False,
    )  # fmt: skip


def stable_diffusion_3(folder: Path) -> StableDiffusion3Pipeline:
    torch.manual_seed(0)
    transformer = SD3Transformer2DModel(
        sample_size=8, patch_size=1, in_channels=4, num_layers=2, attention_head_dim=8, num_attention_heads=4,
        caption_projection_dim=32, joint_attention_dim=32, pooled_projection_dim=64, out_channels=4,
    )  # fmt: skip
    t5, t5_tokenizer = _t5()
    tokenizer = clip_tokenizer(folder / "clip")
    return StableDiffusion3Pipeline(
        transformer=transformer, scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0), vae=_vae(4, 0.1),
        text_encoder=CLIPTextModelWithProjection(_clip_config()), tokenizer=tokenizer,
        text_encoder_2=CLIPTextModelWithProjection(_clip_config()), tokenizer_2=tokenizer,
        text_encoder_3=t5, tokenizer_3=t5_tokenizer,
    )  # fmt: skip


def flux(folder: Path) -> FluxPipeline:
    torch.manual_seed(0)
    transformer = FluxTransformer2DModel(
        patch_size=1, in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=2,
        joint_attention_dim=32, pooled_projection_dim=32, axes_dims_rope=[4, 4, 8], guidance_embeds=True,
    )  # fmt: skip
    t5, t5_tokenizer = _t5()
    return FluxPipeline(
        transformer=transformer,
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0, use_dynamic_shifting=True),
        vae=_vae(1, 0.1), text_encoder=CLIPTextModel(_clip_config()), tokenizer=clip_tokenizer(folder / "clip"),
        text_encoder_2=t5, tokenizer_2=t5_tokenizer,
    )  # fmt: skip


PIPELINES = {"sd15": stable_diffusion, "sdxl": stable_diffusion_xl, "sd3": stable_diffusion_3, "flux": flux}
# The sampler's settings that suit each
_SMALL = {"num_inference_steps": 5, "guidance_scale": 3.0, "height": 16, "width": 16}
SETTINGS = {
    "sd15": _SMALL,
    "sdxl": _SMALL,
    "sd3": _SMALL | {"pipeline_kwargs": {"max_sequence_length": 12}},
    "flux": _SMALL | {"pipeline_kwargs": {"max_sequence_length": 12}},
}
