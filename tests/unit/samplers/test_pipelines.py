"""Sampling with diffusers pipelines: what is repeated is what was sampled, and what cannot be repeated is refused."""

import pytest
import torch
from diffusers import (
    DDIMScheduler,
    FluxImg2ImgPipeline,
    PixArtAlphaPipeline,
    PixArtTransformer2DModel,
    StableDiffusion3Img2ImgPipeline,
    StableDiffusionImg2ImgPipeline,
    StableDiffusionInpaintPipeline,
)
from PIL import Image
from support.pipelines import PIPELINES, SETTINGS, stable_diffusion

from trl_credit.samplers.pipelines import PipelineError, PipelineSampler
from trl_credit.samplers.policy import DenoiserPolicy


PROMPTS = ["a red fox", "blue boat in the snow"]


def make(pipeline, name="sd15", steps=5, trained=range(4), **changes):
    settings = SETTINGS[name] | changes
    return PipelineSampler(
        pipeline, steps, trained, guidance_scale=settings.get("guidance_scale"), size=(16, 16),
        arguments=settings.get("pipeline_kwargs"),
    )  # fmt: skip


def pipeline_of(name, folder):
    pipeline = PIPELINES[name](folder)
    for component in pipeline.components.values():
        if isinstance(component, torch.nn.Module):
            component.eval()
    return pipeline


def sample(sampler, prompts=PROMPTS, rows=None):
    torch.manual_seed(0)
    policy = DenoiserPolicy(getattr(sampler.pipeline, sampler.component))
    return *sampler.sample(prompts, policy, rows), policy


@torch.no_grad()
def replay_difference(sampler, trajectories, policy):
    batch = {name: torch.stack([row[name] for row in trajectories]) for name in trajectories[0]}
    count, steps = batch["steps"].shape
    rows, columns = torch.arange(count).repeat_interleave(steps), torch.arange(steps).repeat(count)
    found = sampler.log_prob(sampler.predict(policy, batch, rows, columns), batch, rows, columns)
    return (found.view(count, steps) - batch["log_probs"]).abs().max().item()


@pytest.mark.parametrize("name", PIPELINES)
def test_a_negative_prompt_is_for_every_image(name, tmp_path):
    """Some pipelines take a text for all prompts, some do not. FLUX has a guidance scale of its own for it."""
    kwargs = SETTINGS[name].get("pipeline_kwargs", {}) | {"negative_prompt": "snow"}
    if name == "flux":
        kwargs |= {"true_cfg_scale": 4.0}
    sampler = make(pipeline_of(name, tmp_path), name, pipeline_kwargs=kwargs)
    trajectories, images, policy = sample(sampler, rows=1)
    assert replay_difference(sampler, trajectories, policy) < 2e-6
    plain = make(sampler.pipeline, name)
    other = sample(plain)[1]
    assert [image.tobytes() for image in images] != [image.tobytes() for image in other]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("sd15", StableDiffusionImg2ImgPipeline),
        ("sd3", StableDiffusion3Img2ImgPipeline),
        ("flux", FluxImg2ImgPipeline),
    ],
)
@pytest.mark.parametrize("trained", [range(2), range(4)])
def test_pipelines_that_start_from_an_image_are_refused(name, kind, trained, tmp_path):
    """They skip the first steps, so each would get the coefficients of another."""
    pipeline = kind(**pipeline_of(name, tmp_path).components)
    kwargs = SETTINGS[name].get("pipeline_kwargs", {}) | {"image": Image.new("RGB", (16, 16)), "strength": 0.6}
    size = (None, None) if name == "sd15" else (16, 16)
    sampler = PipelineSampler(pipeline, 5, trained, guidance_scale=3.0, size=size, arguments=kwargs)
    with pytest.raises(PipelineError, match="from the first to the last"):
        sample(sampler)


def test_pipelines_that_change_latents_between_steps_are_refused(tmp_path):
    pipeline = pipeline_of("sd15", tmp_path)

    def halve(pipe, step, time, inputs):
        return {"latents": inputs["latents"] / 2}

    with pytest.raises(PipelineError, match="changes the latents between its steps"):
        sample(make(pipeline, pipeline_kwargs={"callback_on_step_end": halve}))
    mask = Image.new("L", (16, 16))
    mask.paste(255, (0, 0, 8, 16))
    inpaint = StableDiffusionInpaintPipeline(**pipeline.components)
    kwargs = {"image": Image.new("RGB", (16, 16)), "mask_image": mask, "strength": 1.0}
    with pytest.raises(PipelineError, match="changes the latents between its steps"):
        sample(make(inpaint, pipeline_kwargs=kwargs))


def test_an_argument_that_changes_between_steps_is_refused(tmp_path):
    pipeline = pipeline_of("sd15", tmp_path)

    def fade(pipe, step, time, inputs):
        return {"prompt_embeds": inputs["prompt_embeds"] * 0.9}

    kwargs = {"callback_on_step_end": fade, "callback_on_step_end_tensor_inputs": ["latents", "prompt_embeds"]}
    with pytest.raises(PipelineError, match="changes its denoiser's `encoder_hidden_states` between steps"):
        sample(make(pipeline, pipeline_kwargs=kwargs))


def test_a_pipeline_that_stops_early_is_refused(tmp_path):
    pipeline = pipeline_of("sd15", tmp_path)

    def stop(pipe, step, time, inputs):
        pipe._interrupt = step >= 2
        return {}

    with pytest.raises(PipelineError, match="took 3 steps, not `num_inference_steps`"):
        sample(make(pipeline, pipeline_kwargs={"callback_on_step_end": stop}))


def test_prompts_of_different_lengths_are_refused(tmp_path):
    pipeline = pipeline_of("sd3", tmp_path)
    encode = pipeline.encode_prompt

    def to_the_longest(*args, **kwargs):
        embeds = encode(*args, **kwargs)
        words = max(len(prompt.split()) for prompt in kwargs["prompt"])
        return tuple(value[:, : 12 + words] if value.dim() == 3 else value for value in embeds)

    pipeline.encode_prompt = to_the_longest
    with pytest.raises(PipelineError, match="pads prompts to the longest of a call"):
        sample(make(pipeline, "sd3"), rows=1)
    sample(make(pipeline, "sd3"), rows=2)


def test_more_images_than_prompts_are_refused(tmp_path):
    with pytest.raises(PipelineError, match="Set `num_generations` instead"):
        make(pipeline_of("sd15", tmp_path), pipeline_kwargs={"num_images_per_prompt": 2})


def test_a_negative_prompt_is_one_text(tmp_path):
    with pytest.raises(PipelineError, match="must be one text for all images"):
        make(pipeline_of("sd15", tmp_path), pipeline_kwargs={"negative_prompt": ["snow", "boat"]})


def test_no_guidance_is_a_scale_of_1(tmp_path):
    kwargs = {"max_sequence_length": 12, "true_cfg_scale": None}
    sampler = make(pipeline_of("flux", tmp_path), "flux", pipeline_kwargs=kwargs)
    assert sampler.cfg_scale == 1.0


def test_what_fails_before_the_first_step_is_said(tmp_path):
    sampler = make(pipeline_of("sd15", tmp_path))
    sampler._arguments["height"] = 30
    with pytest.raises(PipelineError, match=r"failed before its first step.*divisible by 8"):
        sample(sampler)


def test_learned_variance_is_refused(tmp_path):
    """PixArt's transformer predicts it beside the noise."""
    parts = pipeline_of("sd3", tmp_path).components
    transformer = PixArtTransformer2DModel(
        sample_size=8, num_layers=1, patch_size=2, attention_head_dim=8, num_attention_heads=2, caption_channels=32,
        in_channels=4, cross_attention_dim=16, out_channels=8, attention_bias=True, norm_elementwise_affine=False,
        norm_eps=1e-6,
    )  # fmt: skip
    pipeline = PixArtAlphaPipeline(
        tokenizer=parts["tokenizer_3"], text_encoder=parts["text_encoder_3"].eval(), transformer=transformer.eval(),
        vae=stable_diffusion(tmp_path).vae.eval(), scheduler=DDIMScheduler(clip_sample=False),
    )  # fmt: skip
    kwargs = {"max_sequence_length": 12, "clean_caption": False, "use_resolution_binning": False}
    with pytest.raises(PipelineError, match="no learned variance"):
        sample(make(pipeline, pipeline_kwargs=kwargs))


@pytest.mark.parametrize("name", PIPELINES)
def test_images_are_the_pipelines_own(name, tmp_path):
    """`decode` on latents gives what the pipeline itself makes of them: the VAE's scale, shift, means, and packing."""
    pipeline = pipeline_of(name, tmp_path)
    sampler = make(pipeline, name)
    kept = {}
    decode = sampler.decode
    sampler.decode = lambda latents: kept.setdefault("latents", latents) is None or decode(latents)
    _, images, _ = sample(sampler)
    kwargs = SETTINGS[name].get("pipeline_kwargs", {})
    # No steps to take: the pipeline decodes the latents that it is given
    pipeline.scheduler.step = lambda output, time, sample, **_: (kept["latents"],)
    theirs = pipeline(
        PROMPTS, num_inference_steps=1, latents=kept["latents"], height=16, width=16, output_type="pil", **kwargs
    ).images
    assert [image.tobytes() for image in images] == [image.tobytes() for image in theirs]


def test_a_vae_that_overflows_in_float16_decodes_in_float32(tmp_path):
    """As SDXL's pipeline does. Stable Diffusion 1.5's does not, whatever the VAE's config says."""
    for name, expected in (("sdxl", torch.float32), ("sd15", torch.float16)):
        pipeline, seen = pipeline_of(name, tmp_path), []
        pipeline.vae.to(torch.float16).register_to_config(force_upcast=True)
        pipeline.vae.decoder.register_forward_pre_hook(lambda module, inputs, seen=seen: seen.append(inputs[0].dtype))
        make(pipeline, name).decode(torch.zeros(1, 4, 8, 8))
        assert seen == [expected]
        assert pipeline.vae.dtype == torch.float16


def test_the_denoiser_stays_in_eval_mode(tmp_path):
    """Label dropout would make log-probs that cannot be repeated."""
    policy = DenoiserPolicy(pipeline_of("sd15", tmp_path).unet)
    policy.train()
    assert policy.training
    assert not any(module.training for module in policy.denoiser.modules())


def test_positions_keep_their_precision(tmp_path):
    """bfloat16 has no 257."""
    pipeline = pipeline_of("flux", tmp_path)
    policy, seen = DenoiserPolicy(pipeline.transformer.to(torch.bfloat16)), {}
    policy.denoiser.forward = lambda **arguments: seen.update(arguments) or (arguments["hidden_states"],)
    policy(
        "hidden_states",
        hidden_states=torch.ones(1, 4, 4),
        img_ids=torch.tensor([[257.0, 0, 0]]),
        timestep=torch.ones(1),
    )
    assert seen["img_ids"].tolist() == [[257.0, 0, 0]]
    assert seen["hidden_states"].dtype == torch.bfloat16
