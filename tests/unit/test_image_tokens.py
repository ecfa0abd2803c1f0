"""The view of an image model as a causal language model over its codes."""

import math

import pytest
import torch
from support.image_tokens import (
    BOS,
    CODEBOOK,
    CODES,
    PAD,
    START,
    image_config,
    image_prompts,
    low_codes,
    save_tiny_janus,
    tiny_janus,
    tokenizer,
)  # fmt: skip
from transformers import GenerationConfig, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from trl_credit import ImageTokenGRPOConfig, ImageTokenGRPOTrainer
from trl_credit.image_tokens import VIEWS, image_token_view
from trl_credit.methods.gcpo import gcpo_weights
from trl_credit.signals.models import check_backbone, vocabulary_size
from trl_credit.signals.negative_prompt import padded_prompt


PROMPTS = ["<s> w10 w20 w30 <begin_of_image>", "<s> w11 <begin_of_image>", "<s> w12 w22 <begin_of_image>"]


def view_of(model=None, guidance_scale=5.0, **settings):
    settings = {"start_token_id": START, "pad_token_id": PAD, "guidance_scale": guidance_scale} | settings
    return image_token_view(model or tiny_janus(), **settings)


def sequences(seed=0):
    """Left-padded prompts and codes: ids, mask, and each row's own prompt."""
    prompts = [tokenizer()(text, add_special_tokens=False)["input_ids"] for text in PROMPTS]
    width = max(map(len, prompts))
    codes = torch.randint(CODEBOOK, (len(prompts), CODES), generator=torch.Generator().manual_seed(seed))
    ids = torch.tensor([[PAD] * (width - len(row)) + row for row in prompts])
    mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in prompts])
    return torch.cat([ids, codes], 1), torch.cat([mask, torch.ones_like(codes)], 1), prompts


def direct_logps(model, prompt, codes, null=False):
    """Log-probs of one image as the official code computes them, without a batch, in float64."""
    embeds = model.model.language_model.embed_tokens(torch.tensor([prompt]))
    if null:  # uncond_inputs_embeds[:, 1:-1] = pad_input_embeds
        embeds = embeds.clone()
        embeds[:, 1:-1] = model.model.language_model.embed_tokens(torch.tensor([[PAD]]))
    embeds = torch.cat([embeds, model.prepare_embeddings_for_image_generation(codes[None])], 1)
    states = model.model.language_model(
        inputs_embeds=embeds, attention_mask=torch.ones(embeds.shape[:2])
    ).last_hidden_state
    logits = model.model.generation_head(states[:, -(len(codes) + 1) :])[:, :-1]
    return logits.log_softmax(-1).gather(-1, codes[None, :, None])[0, :, 0]


def fused_logps(view, ids, mask):
    labels = ids.clone()
    labels[:, :-CODES] = -100
    out = view(input_ids=ids, attention_mask=mask, labels=labels, fused_lm_head=True)
    return out.log_probs[:, -CODES:]


def test_logps_and_gradients_are_the_models():
    ids, mask, prompts = sequences()
    plain = tiny_janus().double()
    want = torch.stack([direct_logps(plain, row, codes) for row, codes in zip(prompts, ids[:, -CODES:], strict=True)])
    view = view_of()
    add_fused_lm_head(view, outputs=("log_probs", "entropy"))
    got = fused_logps(view, ids, mask)
    assert (got - want).abs().max() < 1e-5
    logits = view(input_ids=ids, attention_mask=mask, logits_to_keep=CODES + 1).logits[:, :-1]
    assert (logits.log_softmax(-1).gather(-1, ids[:, -CODES:, None]).squeeze(-1) - want).abs().max() < 1e-5

    weight = torch.randn(want.shape, generator=torch.Generator().manual_seed(1))
    (got * weight).sum().backward()
    (want * weight).sum().backward()
    wanted = dict(plain.named_parameters())
    for name, parameter in view.named_parameters():
        if not name.startswith("model.language_model."):
            assert parameter.grad is None
            continue
        error = (parameter.grad - wanted[name].grad).norm() / wanted[name].grad.norm().clamp(min=1e-9)
        assert error < 1e-5, name


def test_weights_are_the_official_construction():
    ids, mask, prompts = sequences()
    plain, view = tiny_janus().double(), view_of()
    add_fused_lm_head(view)
    with torch.no_grad():
        for head in (view.code_head, plain.model.generation_head.vision_head):
            head.weight.div_(4.0)  # contrasts stay below the clamp
        policy = fused_logps(view, ids, mask)
        null = torch.cat([view.null_prompt(ids[:, :-CODES]), ids[:, -CODES:]], 1)
        negative = fused_logps(view, null, mask)
        got = gcpo_weights(policy, negative, torch.ones(policy.shape), noise_floor=0.0)
        alpha = math.log(1 - 0.8) / math.log(1 - 0.4) - 1
        for row, (prompt, codes) in enumerate(zip(prompts, ids[:, -CODES:], strict=True)):
            # compute_importance_weights of the official code, "kl" and "hist"
            logp, unguided = direct_logps(plain, prompt, codes), direct_logps(plain, prompt, codes, null=True)
            u = (unguided - logp).clamp(-20, 20)
            divergence = (u.exp() - u - 1).clamp(max=10)
            assert len(divergence.unique()) == CODES  # no ties, which the official code breaks arbitrarily
            ranks = torch.empty(CODES, dtype=torch.float64)
            ranks[divergence.argsort()] = torch.arange(1, CODES + 1, dtype=torch.float64)
            weights = (ranks / CODES).pow(alpha)
            torch.testing.assert_close(got[row].double(), weights / weights.sum() * CODES, rtol=1e-5, atol=1e-6)
    assert got.std() > 0.5


def test_null_prompt_keeps_the_frame():
    ids, mask, prompts = sequences()
    null = view_of().null_prompt(ids[:, :-CODES])
    for row, own, keep in zip(prompts, null, mask[:, :-CODES].bool(), strict=True):
        assert own[keep].tolist() == [BOS, *[PAD] * (len(row) - 2), START]
        assert own[keep].tolist() == padded_prompt(row, {BOS, START}, PAD)


@pytest.mark.parametrize("scale", [1.0, 5.0])
def test_generation_is_guided(scale):
    """Greedy codes against a loop without a cache, without a batch, in float64."""
    ids, mask, prompts = sequences()
    plain, view = tiny_janus().double(), view_of(tiny_janus().double(), scale, sampling_batch_size=2)
    greedy = GenerationConfig(do_sample=False, eos_token_id=list(range(CODEBOOK)))
    width = ids.size(1) - CODES
    got = view.generate(input_ids=ids[:, :width], attention_mask=mask[:, :width], generation_config=greedy)
    assert torch.equal(got[:, :width], ids[:, :width])
    embed, lm = plain.model.language_model.embed_tokens, plain.model.language_model
    with torch.no_grad():
        for prompt, codes in zip(prompts, got[:, width:], strict=True):
            branches = [prompt, [prompt[0], *[PAD] * (len(prompt) - 2), prompt[-1]]]
            for place, code in enumerate(codes):
                before = plain.prepare_embeddings_for_image_generation(codes[None, :place])
                cond, null = (
                    plain.model.generation_head(
                        lm(inputs_embeds=torch.cat([embed(torch.tensor([ids_])), before], 1)).last_hidden_state[0, -1]
                    )
                    for ids_ in branches
                )
                assert (null + scale * (cond - null)).argmax() == code


def test_sampling_follows_the_guided_distribution_and_the_temperature():
    view = view_of(guidance_scale=2.0)
    ids = torch.tensor([[BOS, 10, START]]).expand(4000, -1)
    torch.manual_seed(0)
    config = GenerationConfig(do_sample=True, temperature=1.5)
    type_length, view_class = type(view).length_of, type(view)
    view_class.length_of = staticmethod(lambda config: 1)  # the first code only
    try:
        codes = view.generate(input_ids=ids, generation_config=config)[:, -1]
    finally:
        view_class.length_of = staticmethod(type_length)
    with torch.no_grad():
        embeds = view.get_input_embeddings()(torch.tensor([[BOS, 10, START], [BOS, PAD, START]]))
        cond, null = view.model.generation_head(view.language_model(inputs_embeds=embeds).last_hidden_state[:, -1])
    want = ((null + 2.0 * (cond - null)) / 1.5).softmax(-1)
    found = torch.bincount(codes, minlength=CODEBOOK) / 4000
    assert (found - want).abs().max() < 0.03


def test_images():
    view = view_of(sampling_batch_size=2)
    codes = torch.randint(CODEBOOK, (3, CODES), generator=torch.Generator().manual_seed(0))
    images = view.images_of(codes)
    pixels = view.decode_image_tokens(codes)
    assert [image.mode for image in images] == ["RGB"] * 3
    assert images[0].size == (pixels.shape[2], pixels.shape[1])


def test_a_view_is_a_language_model_with_the_plain_names():
    plain = tiny_janus()
    names = set(plain.state_dict())
    view = view_of(plain)
    assert view is plain
    assert set(view.state_dict()) == names
    assert vocabulary_size(view) == CODEBOOK
    check_backbone(view)
    assert view_of(view, 3.0).guidance_scale == 3.0  # again, with other settings
    assert type(view).__name__ == "JanusForConditionalGeneration"


def test_a_shorter_stand_in_row_runs():
    view = view_of()
    logits = view(input_ids=torch.tensor([[PAD, BOS, START, 3]]), attention_mask=torch.tensor([[0, 1, 1, 0]])).logits
    assert logits.shape == (1, 4, CODEBOOK)


def test_other_models_are_refused():
    config = Qwen2Config(vocab_size=10, hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1)
    with pytest.raises(ValueError, match="no view of Qwen2ForCausalLM"):
        view_of(Qwen2ForCausalLM(config))
    assert set(VIEWS) == {"JanusForConditionalGeneration"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"use_vllm": True}, "`use_vllm` .True. has no meaning for an image-token model"),
        ({"top_p": 0.9}, "`top_p` .0.9. has no meaning"),
        ({"top_k": 10}, "`top_k` .10. has no meaning"),
        ({"min_p": 0.1}, "`min_p`"),
        ({"repetition_penalty": 1.1}, "`repetition_penalty`"),
        ({"generation_kwargs": {"num_beams": 2}}, "`generation_kwargs`"),
        ({"cache_implementation": "static"}, "`cache_implementation`"),
        ({"mask_truncated_completions": True}, "`mask_truncated_completions` .True.* has all of its codes"),
        ({"pad_to_multiple_of": 64}, "`pad_to_multiple_of`"),
        ({"cast_lm_head_to_fp32": True}, "`cast_lm_head_to_fp32`"),
        ({"guidance_scale": -1.0}, "`guidance_scale`"),
    ],
)
def test_settings_of_text_are_refused(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        image_config(tmp_path, **settings)


def test_defaults_are_janus_and_the_official_ones(tmp_path):
    args = ImageTokenGRPOConfig(str(tmp_path), bf16=False, use_cpu=True)
    assert (args.guidance_scale, args.temperature, args.max_completion_length) == (5.0, 1.0, 576)


@pytest.fixture(scope="module")
def janus(tmp_path_factory):
    return save_tiny_janus(tmp_path_factory.mktemp("janus"))


@pytest.mark.parametrize(
    ("settings", "arguments", "message"),
    [
        ({"max_completion_length": 576}, {}, "`max_completion_length` .576. must be .* 16. Set"),
        ({}, {"tools": [print]}, "`tools` has no meaning"),
        ({}, {"rollout_func": print}, "`rollout_func` has no meaning"),
        (
            {},
            {"train_dataset": image_prompts().add_column("images", [0] * 16)},
            "`train_dataset` has a column 'images'",
        ),
        ({"image_start_token": "<boi>"}, {}, "`image_start_token`: the tokenizer has no token '<boi>'"),
        ({"credit": "gcpo", "importance_sampling_level": "sequence"}, {}, "cancels the token credit"),
    ],
)
def test_what_cannot_be_trained_is_refused(janus, settings, arguments, message, tmp_path):
    args = {"model": janus, "reward_funcs": low_codes, "train_dataset": image_prompts()} | arguments
    with pytest.raises(ValueError, match=message):
        ImageTokenGRPOTrainer(args=image_config(tmp_path, **settings), **args)
