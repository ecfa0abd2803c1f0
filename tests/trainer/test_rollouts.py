"""TRL's other rollout paths: images, tools, environments, rollout functions, importance ratios."""

import contextlib
import math

import pytest
import qwen_vision
import torch
from helpers import config, letter_reward, place_reward, prompts
from support.batching import CREDIT
from support.resumed import assert_same_run, outcome
from support.tools import chats, tool_calling_model, vision

from trl_credit import CreditGRPOTrainer, build_credit
from trl_credit.batching import loss_mask
from trl_credit.extras.effect import NothingTrainedError


every_method = pytest.mark.parametrize("name", CREDIT)


def settings_of(name: str) -> dict:
    needs_old = build_credit(CREDIT[name]).needs_old_policy
    return {"credit": CREDIT[name], **({"num_iterations": 2} if needs_old else {})}


def run(tiny_model, args, vain=False, **kwargs):
    kwargs = {"train_dataset": prompts(), **kwargs}
    trainer = CreditGRPOTrainer(model=tiny_model, reward_funcs=place_reward, args=args, **kwargs)
    masks, advantages = [], []

    def record(batch, result):
        masks.append(loss_mask(batch))
        advantages.append(batch["advantages"])

    trainer.credit_observers.append(record)
    with pytest.raises(NothingTrainedError) if vain else contextlib.nullcontext():
        trainer.train()
    for mask, advantage in zip(masks, advantages, strict=True):
        assert torch.isfinite(advantage).all()
        if advantage.dim() == 2:
            assert (advantage[~mask] == 0).all()
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())
    return trainer, masks


# Rollout functions, with tokens of an environment in the completion and log-probs of a sampler


def rollout(prompts_, trainer):
    tokenizer = trainer.processing_class
    ids = [tokenizer(prompt)["input_ids"] for prompt in prompts_]
    lengths = [1 + i % 5 for i in range(len(ids))]
    completions = [[10 + i] * n + [20, 21, 22, tokenizer.eos_token_id] for i, n in enumerate(lengths)]
    masks = [[1] * n + [0, 0, 1, 1] for n in lengths]
    logprobs = [[-2.0] * len(c) for c in completions]
    logprobs[0][0] = math.nan
    logprobs[1][0] = -math.inf
    return {"prompt_ids": ids, "completion_ids": completions, "logprobs": logprobs, "env_mask": masks}


@every_method
def test_rollout_function_with_environment_tokens(name, tiny_model, tmp_path):
    args = config(tmp_path, credit=CREDIT[name], max_steps=2, num_iterations=2, off_policy_mask_threshold=5.0)
    trainer, masks = run(tiny_model, args, rollout_func=rollout)
    assert (masks[0].sum(-1) < trainer._buffered_inputs[0]["completion_mask"].sum(-1)).all()
    # the sampler's NaN and infinite log-prob, of 8 completions
    assert trainer.state.log_history[0]["credit/nonfinite_tokens"] == 2


@every_method
def test_vllm_importance_ratios(name, tiny_model, tmp_path, monkeypatch):
    """TRL multiplies its own ratios into the loss after token advantages are in; a NaN sampler log-prob means ratio 1."""
    args = config(tmp_path, **settings_of(name), max_steps=2, vllm_importance_sampling_mode="token_truncate")
    trainer = CreditGRPOTrainer(
        model=tiny_model, reward_funcs=place_reward, args=args, train_dataset=prompts(), rollout_func=rollout
    )
    monkeypatch.setattr(trainer, "use_vllm", True)
    generate = trainer._generate_and_score_completions

    def without_weight_sync(inputs):
        trainer._last_loaded_step = trainer.state.global_step
        return generate(inputs)

    trainer._generate_and_score_completions = without_weight_sync
    trainer.train()
    entry = trainer.state.log_history[0]
    assert entry["credit/nonfinite_tokens"] == 2
    assert entry["sampling/importance_sampling_ratio/max"] > 1.0
    assert all(torch.isfinite(p).all() for p in trainer.model.parameters())


@every_method
def test_all_completions_truncated(name, tiny_model, tmp_path):
    args = config(tmp_path, **settings_of(name), max_steps=1, max_completion_length=2, mask_truncated_completions=True)
    trainer, masks = run(tiny_model, args, vain=True)
    assert not masks[0].any()
    method = build_credit(CREDIT[name])
    skips = name != "uniform" and not method.reads_batch
    assert trainer.state.log_history[0]["credit/skipped_fraction"] == float(skips)
    weighted = method.reweights or name == "uniform"
    for key in (
        ("weight_std", "effective_fraction") if weighted else ("advantage_change",)
    ):  # there was nothing to weight
        assert trainer.state.log_history[0][f"credit/{key}"] is None


# Tools and environments: a model that never calls one still goes through TRL's tool code


class Counter:
    """An environment that adds to the prompt and scores by itself."""

    def reset(self, **kwargs) -> str:
        return "go"

    def add(self, number: int) -> int:
        """Adds one.

        Args:
            number: The number.

        Returns:
            The number plus one.
        """
        return number + 1

    def get_reward(self) -> float:
        return 0.5


@pytest.mark.parametrize("kind", ["tools", "environment"])
def test_tools_and_environments(kind, tiny_model, tmp_path):
    """The negative prompt has the tools' description and the environment's observation, like the prompt."""
    kwargs = {"tools": [Counter().add]} if kind == "tools" else {"environment_factory": Counter}
    model, tokenizer = tool_calling_model(tmp_path / "model")
    note = "\n\nNote: Intentionally generate an incorrect answer."
    credit = {"method": "gcpo", "negative_prompt": "{prompt}" + note}
    args = config(tmp_path, credit=credit, max_steps=2, num_iterations=2)
    trainer, _ = run(model, args, train_dataset=chats(), processing_class=tokenizer, **kwargs)
    batch = trainer._buffered_inputs[0]
    assert "tool_mask" in batch
    key = f"negative_prompt/{{prompt}}{note}"
    for row in range(8):
        real = tokenizer.decode(batch["prompt_ids"][row][batch["prompt_mask"][row].bool()])
        negative = tokenizer.decode(batch[f"{key}/ids"][row][batch[f"{key}/mask"][row].bool()])
        assert "Adds one." in real
        assert ("=go<|im_end|>" in real) == (kind == "environment")
        assert negative.replace(note, "") == real != negative


def images_in(pixel_values: torch.Tensor) -> list[bytes]:
    """The images of a forward, whatever their order."""
    return sorted(image.numpy().tobytes() for image in pixel_values)


@pytest.mark.parametrize(
    "credit",
    [
        "uniform",
        "gcpo",
        {"method": "gcpo", "negative_prompt": "empty"},
        {"method": "gcpo", "negative_prompt": "blank_image"},
        "dgpo",
        "vppo",
    ],
    ids=lambda settings: " ".join(settings) if isinstance(settings, dict) else None,
)
def test_vision_language_model(credit, tmp_path):
    example = vision()
    model, processor = example.tiny_model()
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=example.names_the_colour,
        args=config(
            tmp_path, credit=credit, max_steps=4, num_iterations=2, per_device_train_batch_size=4,
            steps_per_generation=2, learning_rate=1e-3,
        ),
        train_dataset=example.make_dataset(16),
    )  # fmt: skip
    seen = []
    forward = trainer.model.get_base_model if hasattr(trainer.model, "get_base_model") else trainer.model
    forward.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: seen.append(kwargs.get("pixel_values")), with_kwargs=True
    )
    trainer.train()
    assert all(math.isfinite(entry["loss"]) for entry in trainer.state.log_history[:-1])
    if credit == "dgpo":
        assert trainer.state.log_history[2]["credit/hellinger"] > 0
    if credit == "vppo":
        forwards = [images_in(p) for p in seen if p is not None]
        for batch in trainer._buffered_inputs:
            damaged = torch.cat(batch["damaged_image/14/0.5/pixel_values"])
            assert len(set(images_in(damaged))) > len(set(images_in(batch["pixel_values"])))
            assert forwards.count(images_in(damaged)) == 2  # one in each iteration
        assert trainer.state.log_history[0]["credit/skipped_fraction"] == 0
        for entry in trainer.state.log_history[:-1]:
            assert entry["credit/contrast"] > 0
            assert 0.4 <= entry["credit/selected"] < 0.7
    if isinstance(credit, dict) and credit["negative_prompt"] == "blank_image":
        picture = example.PILImage.new("RGB", (16, 16), (255, 255, 255))
        white = torch.as_tensor(processor.image_processor(images=[picture])["pixel_values"][0]).float()
        training = [p for p in seen if p is not None and p.size(0) == 4]
        blank = [p for p in training if torch.allclose(p, white.expand_as(p), atol=1e-5)]
        assert len(blank) == 4  # one forward with white images for each of the loss's
        assert trainer.state.log_history[0]["credit/contrast"] > 0


@pytest.mark.parametrize("negative_prompt", ["wrong_answer", "{prompt}", "blank_image"])
@pytest.mark.parametrize("white", [False, True])
def test_several_images_of_several_sizes(negative_prompt, white, tmp_path):
    """Qwen2-VL's layout: patches of all images in one tensor, cut by their grids, and multimodal token types."""
    model, processor = qwen_vision.tiny_model()
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=letter_reward,
        args=config(
            tmp_path, credit={"method": "gcpo", "negative_prompt": negative_prompt}, max_steps=4, num_iterations=2,
            per_device_train_batch_size=4, steps_per_generation=2, learning_rate=1e-3,
        ),
        train_dataset=qwen_vision.make_dataset(white=white),
    )  # fmt: skip
    trainer.train()
    key = f"negative_prompt/{negative_prompt}"
    for batch in trainer._buffered_inputs:
        images = batch[f"{key}/ids"] == model.config.image_token_id
        assert torch.equal(batch[f"{key}/mm_token_type_ids"] == 1, images)
        assert images.sum(-1).tolist() == (batch["prompt_ids"] == model.config.image_token_id).sum(-1).tolist()
    contrasts = [entry["credit/contrast"] for entry in trainer.state.log_history[:-1]]
    same = negative_prompt == "{prompt}" or (negative_prompt == "blank_image" and white)
    assert (max(contrasts) == 0) if same else (min(contrasts) > 0)


def test_damaged_images_of_several_sizes(tmp_path):
    model, processor = qwen_vision.tiny_model()
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=letter_reward,
        args=config(
            tmp_path, credit="vppo", max_steps=4, num_iterations=2, per_device_train_batch_size=4, steps_per_generation=2,
        ),
        train_dataset=qwen_vision.make_dataset(),
    )  # fmt: skip
    trainer.train()
    key = "damaged_image/14/0.5"
    for batch in trainer._buffered_inputs:
        assert batch[f"{key}/present"].all()
        assert torch.equal(batch[f"{key}/mm_token_type_ids"] == 1, batch[f"{key}/ids"] == model.config.image_token_id)
        patches = batch["image_grid_thw"].prod(-1)
        assert sum(map(len, batch[f"{key}/pixel_values"])) == patches.sum() == len(batch["pixel_values"])
    assert all(entry["credit/contrast"] > 0 for entry in trainer.state.log_history[:-1])


def test_damaged_images_of_a_resumed_run(tmp_path):
    """Within a generation batch and after it, the images and all that follows are those of the whole run."""

    def make(path, checkpoint=None):
        example = vision()
        model, processor = example.tiny_model()
        if checkpoint is not None:  # transformers' own loading misses the weights, which it saved by other names
            model = type(model).from_pretrained(checkpoint)
        return CreditGRPOTrainer(
            model=model,
            processing_class=processor,
            reward_funcs=example.names_the_colour,
            args=config(
                path, credit="vppo", max_steps=8, num_iterations=2, per_device_train_batch_size=4, steps_per_generation=2,
                learning_rate=3e-3, save_strategy="steps", save_steps=1,
            ),
            train_dataset=example.make_dataset(16),
        )  # fmt: skip

    whole = make(tmp_path / "whole")
    whole.train()
    expected = outcome(whole)
    for stop in (3, 4):
        checkpoint = str(tmp_path / "whole" / f"checkpoint-{stop}")
        resumed = make(tmp_path / "resumed", checkpoint)
        torch.manual_seed(stop)
        resumed.train(resume_from_checkpoint=checkpoint)
        assert_same_run(outcome(resumed), expected, f"stopped after {stop}")
