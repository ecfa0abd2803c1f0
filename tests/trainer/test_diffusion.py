"""The trainer for image models: its loss against the definition, and what it shares with the trainer for text."""

import json
import logging
import math
from concurrent.futures import Future
from pathlib import Path

import pytest
import torch
import transformers
from datasets import Dataset, DatasetDict
from diffusers import PNDMScheduler
from helpers import config
from huggingface_hub import ModelCard
from peft import LoraConfig
from safetensors.torch import load_file
from support.pipelines import PIPELINES, SETTINGS, TARGETS, stable_diffusion
from transformers import Trainer, TrainerCallback

from trl_credit import DiffusionGRPOConfig, DiffusionGRPOTrainer, PCPOTrainer
from trl_credit.toy.digits import digit_probability, load_digits_pipeline, make_dataset


def make(output_dir, pipeline="trl_credit:digits", reward=digit_probability, data=None, **settings):
    lora, cls = settings.pop("lora", None), settings.pop("cls", DiffusionGRPOTrainer)
    evaluation = settings.pop("eval_dataset", None)
    defaults = {"max_completion_length": None, "loss_type": "grpo", "learning_rate": 1e-3, "num_inference_steps": 5}
    return cls(
        pipeline,
        reward,
        config(output_dir, kind=DiffusionGRPOConfig, **(defaults | settings)),
        make_dataset(20) if data is None else data,
        evaluation,
        peft_config=LoraConfig(r=4, target_modules=lora) if lora else None,
    )


def darkness(images, **_):
    return [1 - sum(image.convert("L").tobytes()) / (255 * image.width * image.height) for image in images]


class Gradients(TrainerCallback):
    """Keeps parameters and gradients of each update, before clipping, and the micro-batch that the loss read."""

    def __init__(self, trainer):
        self.updates, self._trainer = [], trainer
        original = trainer._compute_loss

        def compute_loss(model, inputs):
            self._batch = {name: value for name, value in inputs.items() if isinstance(value, torch.Tensor)}
            self._loss = original(model, inputs)
            return self._loss

        trainer._compute_loss = compute_loss
        trainer.add_callback(self)

    def on_pre_optimizer_step(self, args, state, control, **kwargs):
        parameters = dict(self._trainer.model.named_parameters())
        self.updates.append(
            {
                "batch": self._batch,
                "loss": self._loss.item(),
                "before": {name: p.detach().clone() for name, p in parameters.items()},
                "gradients": {name: p.grad.clone() for name, p in parameters.items() if p.grad is not None},
            }
        )


def oracle(denoiser, batch, form, clip, guidance=1.0, beta=0.0, start=None):
    """The loss of a micro-batch in float64: from the papers' formulas, one image and one step at a time."""
    labels = batch["sampler/condition/0/class_labels"]
    steps = batch["sampler/steps"]
    even = [1 - i / 5 for i in range(5)]
    times = [3 * t / (1 + 2 * t) for t in even] + [0.0]
    sigmas = [0.7 * math.sqrt(t / (1 - (times[1] if t >= 1 else t))) for t in times[:5]]
    native = [
        math.sqrt(times[i] - times[i + 1]) / sigmas[i] * (1 + (1 - times[i]) * sigmas[i] ** 2 / (2 * times[i]))
        for i in range(5)
    ]
    total, kl_total = 0.0, 0.0
    for row in range(len(steps)):
        for column, step in enumerate(steps[row].tolist()):
            x, y = (batch[f"sampler/{name}"][row, column].double() for name in ("latents", "next"))
            t, dt, sigma = times[step], times[step] - times[step + 1], sigmas[step]

            def velocity(net, x=x, t=t, row=row):
                parts = [net(x[None], torch.tensor([1000 * t]), label[None])[0] for label in labels[row]]
                outputs = [part.sample if hasattr(part, "sample") else part for part in parts]
                return outputs[0] if len(outputs) == 1 else outputs[0] + guidance * (outputs[1] - outputs[0])

            def mean(v, x=x, t=t, dt=dt, sigma=sigma):
                return x - v * dt - sigma**2 / (2 * t) * (x + (1 - t) * v) * dt

            std = sigma * math.sqrt(dt)
            v = velocity(denoiser)[0]
            logp = -((y - mean(v)) ** 2).mean() / (2 * std**2)
            old = (
                batch["old_per_token_logps"][row, column].double() if "old_per_token_logps" in batch else logp.detach()
            )
            advantage = batch["sequence_advantages"][row].double()
            c = 1.0 if form == "uniform" else sum(native) * dt / native[step]
            if form in ("uniform", "advantage"):
                ratio, scaled = torch.exp(logp - old), advantage * c
                term = -torch.min(ratio * scaled, ratio.clamp(1 - clip, 1 + clip) * scaled)
            elif form == "ratio":
                ratio = torch.exp(c * (logp - old))
                term = -torch.min(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)
            else:
                term = torch.relu(clip * advantage.abs() - advantage * c * (logp - old))
            total = total + term / steps.numel()
            if beta:
                with torch.no_grad():
                    reference = mean(velocity(start)[0])
                kl_total = kl_total + ((mean(v) - reference) ** 2).mean() / (2 * std**2) / steps.numel()
    return total + beta * kl_total, kl_total


@pytest.mark.parametrize(
    ("form", "settings"),
    [
        ("uniform", {}),
        ("hinge", {}),
        ("ratio", {}),
        ("advantage", {}),
        ("hinge", {"guidance_scale": 2.0, "train_steps": ":", "denoiser_batch_size": 7}),
        ("hinge", {"train_steps_drawn": 2}),
        ("ratio", {"beta": 0.5}),
        ("uniform", {"loss_type": "dapo"}),
    ],
    ids=lambda value: value if isinstance(value, str) else ",".join(value) or "plain",
)
def test_loss_and_gradient_are_the_definition(form, settings, tmp_path):
    """On-policy, then off-policy: the second pass over the same images."""
    credit = "uniform" if form == "uniform" else {"method": "pcpo", "form": form}
    # A step so large that ratios leave the clip range
    trainer = make(
        tmp_path, credit=credit, num_iterations=2, max_steps=2, optim="sgd", learning_rate=30.0, max_grad_norm=1e9,
        epsilon=0.05, skip_zero_advantage=False, **settings,
    )  # fmt: skip
    start = load_digits_pipeline().transformer.double()
    advantages = []
    trainer.credit_observers.append(lambda batch, result: advantages.append(result.view["advantages"]))
    seen = Gradients(trainer)
    trainer.train()
    clipped = [log["clip_ratio/region_mean"] for log in trainer.state.log_history if "loss" in log]
    assert clipped[0] == 0
    assert 0 < clipped[1] < 1
    for number, update in enumerate(seen.updates):
        denoiser = load_digits_pipeline().transformer.double()
        denoiser.load_state_dict({n.removeprefix("denoiser."): p for n, p in update["before"].items()})
        batch = update["batch"] | {"sequence_advantages": advantages[number]}
        loss, kl = oracle(
            denoiser, batch, form, 0.05, settings.get("guidance_scale", 1.0), settings.get("beta", 0), start
        )
        loss.backward()
        expected = {name: p.grad for name, p in denoiser.named_parameters()}
        scale = max(gradient.abs().max() for gradient in expected.values())
        assert scale > 1e-5
        for name, gradient in update["gradients"].items():
            difference = (gradient - expected[name.removeprefix("denoiser.")]).abs().max()
            assert difference < 2e-4 * scale, (number, name)
        if form != "hinge":  # whose value differs by a constant
            assert update["loss"] == pytest.approx(loss.item(), rel=1e-3, abs=1e-5)
        if settings.get("beta"):
            logged = [log["kl"] for log in trainer.state.log_history if "kl" in log][number]
            assert logged == pytest.approx(float(kl), rel=1e-3, abs=1e-6)
            assert (logged > 0) == (number > 0)


def parameters(trainer):
    return {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


@pytest.mark.parametrize(
    "settings", [{}, {"dynamic_sampling": True}, {"lora": ["to_hidden"]}], ids=["plain", "dynamic", "lora"]
)
def test_a_resumed_run_is_the_uninterrupted_one(settings, tmp_path):
    """From the middle of a generation batch of four updates."""
    common = {
        "credit": "pcpo", "num_iterations": 2, "steps_per_generation": 2, "max_steps": 7, "save_strategy": "steps",
        "save_steps": 3, "guidance_scale": 1.5,
    } | settings  # fmt: skip
    whole = make(tmp_path / "a", **common)
    whole.train()
    again = make(tmp_path / "b", **common)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-3"))
    expected = parameters(whole)
    for name, value in parameters(again).items():
        assert torch.equal(value, expected[name]), name
    logs = [[log for log in run.state.log_history if "loss" in log][-1] for run in (again, whole)]
    for log in logs:
        del log["step_time"]
    assert logs[0] == logs[1]


def test_images_and_their_trajectories_stay_together(tmp_path):
    """Through dynamic sampling, shuffling and micro-batches: the last step's latents are the image that was scored."""
    scored = {}

    def reward(images, **_):
        for image in images:
            scored[image.tobytes()] = image
        return [float(image.getpixel((3, 3)) > 127) for image in images]

    trainer = make(
        tmp_path,
        reward=reward,
        credit="pcpo",
        train_steps=":",
        dynamic_sampling=True,
        steps_per_generation=2,
        max_steps=4,
    )
    advantages = []

    def look(batch, result):
        images = trainer.sampler.decode(batch["sampler/next"][:, -1])
        for image, advantage in zip(images, result.view["advantages"].tolist(), strict=True):
            assert image.tobytes() in scored
            advantages.append((float(image.getpixel((3, 3)) > 127), advantage))

    trainer.credit_observers.append(look)
    trainer._savings = type(trainer._savings)()  # every row is in the view
    trainer.train()
    assert {(pixel, advantage > 0) for pixel, advantage in advantages if advantage} == {(1.0, True), (0.0, False)}
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert max(log["dynamic_sampling/rounds"] for log in logs) > 1
    assert max(log["sampling/replay_difference/max"] for log in logs if "sampling/replay_difference/max" in log) < 1e-6


def test_skipping_images_without_an_advantage_changes_no_gradient(tmp_path):
    def half(images, prompts, **_):
        return [float(i % 3) if "1" in prompt or "2" in prompt else 1.0 for i, prompt in enumerate(prompts)]

    updates = []
    for skip in (True, False):
        trainer = make(tmp_path, reward=half, credit="pcpo", skip_zero_advantage=skip, max_steps=2, optim="sgd")
        seen = Gradients(trainer)
        trainer.train()
        updates.append(seen.updates)
    rows = [[len(update["batch"]["advantages"]) for update in run] for run in updates]
    assert rows[0] < rows[1]
    for ours, theirs in zip(*updates, strict=True):
        for name, gradient in theirs["gradients"].items():
            torch.testing.assert_close(ours["gradients"][name], gradient, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize("name", PIPELINES)
@pytest.mark.parametrize("lora", [TARGETS, None], ids=["lora", "whole"])
def test_real_pipelines_train_and_load_back(name, lora, tmp_path):
    """With gradient checkpointing; diffusers then draws the same images from what was saved."""
    pipeline = PIPELINES[name](tmp_path)
    data = Dataset.from_dict({"prompt": ["a red fox", "blue boat"] * 8})
    trainer = make(
        tmp_path / "out", pipeline, darkness, data, credit="pcpo", lora=lora, sampling_batch_size=3, learning_rate=1e-2,
        gradient_checkpointing=True, **SETTINGS[name],
    )  # fmt: skip
    before = parameters(trainer)
    trainer.train()
    trainer.save_model()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert max(log["sampling/replay_difference/max"] for log in logs) < 2e-6
    assert all(log["grad_norm"] > 0 for log in logs)
    moved = {n for n, p in parameters(trainer).items() if not torch.equal(p, before[n])}
    assert moved
    assert all(("lora" in n) == (lora is not None) for n in moved)
    fresh = PIPELINES[name](tmp_path) if lora else type(pipeline).from_pretrained(tmp_path / "out")
    if lora:
        for component in fresh.components.values():
            if isinstance(component, torch.nn.Module):
                component.eval()
        untrained = draw(fresh, name)
        fresh.load_lora_weights(str(tmp_path / "out"))
    images = draw(fresh, name)
    torch.testing.assert_close(images, draw(pipeline, name), rtol=0, atol=2e-6)
    if lora:
        assert (images - untrained).abs().max() > 1e-4


def draw(pipeline, name):
    pipeline.set_progress_bar_config(disable=True)
    settings = SETTINGS[name]
    return pipeline(
        "a red fox", num_inference_steps=3, generator=torch.Generator().manual_seed(0), output_type="pt",
        guidance_scale=settings["guidance_scale"], height=16, width=16, **settings.get("pipeline_kwargs", {}),
    ).images  # fmt: skip


def test_a_scheduler_without_a_stochastic_step_is_replaced(tmp_path, caplog):
    """Stable Diffusion 1.5 comes with PNDM."""
    pipeline = stable_diffusion(tmp_path, PNDMScheduler)
    with caplog.at_level(logging.WARNING):
        trainer = make(tmp_path, pipeline, darkness, Dataset.from_dict({"prompt": ["a fox"] * 8}), **SETTINGS["sd15"])
    assert "PNDMScheduler has no stochastic step" in caplog.text
    assert type(trainer.sampler.scheduler).__name__ == "DDIMScheduler"
    trainer.train()
    trainer.save_model()
    assert type(pipeline.scheduler).__name__ == "PNDMScheduler"
    assert type(type(pipeline).from_pretrained(tmp_path).scheduler).__name__ == "PNDMScheduler"


def test_a_pipeline_that_cannot_be_repeated_is_refused(tmp_path):
    settings = SETTINGS["sd15"] | {"pipeline_kwargs": {"guidance_rescale": 0.7}}
    trainer = make(
        tmp_path, stable_diffusion(tmp_path), darkness, Dataset.from_dict({"prompt": ["a fox"] * 8}), **settings
    )
    with pytest.raises(ValueError, match="combines its denoiser's predictions"):
        trainer.train()


def test_a_deterministic_last_step_is_refused(tmp_path):
    pipeline = stable_diffusion(tmp_path)
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, set_alpha_to_one=True)
    data, settings = Dataset.from_dict({"prompt": ["a fox"] * 8}), SETTINGS["sd15"]
    with pytest.raises(ValueError, match="step 4 of 5 is deterministic"):
        make(tmp_path, pipeline, darkness, data, train_steps=":", **settings).train()
    make(tmp_path, pipeline, darkness, data, **settings).train()


def test_conversations_evaluation_and_presets(tmp_path):
    rows = [{"prompt": [{"role": "user", "content": row["prompt"]}], "digit": row["digit"]} for row in make_dataset(20)]
    data = Dataset.from_list(rows)
    seen = []

    def reward(images, prompts, digit, **_):
        seen.append(prompts[0][0]["content"])
        return digit_probability(images, digit=digit)

    trainer = make(tmp_path, reward=reward, data=data, cls=PCPOTrainer, num_generations_eval=1)
    trainer.eval_dataset = data
    assert trainer.credit_method.name == "pcpo"
    metrics = trainer.evaluate()
    assert 0.2 < metrics["eval_reward"] < 0.9
    trainer.train()
    assert "handwritten" in seen[0]
    trainer.create_model_card()
    assert "2509.25774" in (tmp_path / "README.md").read_text()


def test_a_clip_range_below_the_noise_of_the_replay_is_told_once(tmp_path, caplog):
    trainer = make(tmp_path, epsilon=1e-4)
    original = trainer.sampler.log_prob
    trainer.sampler.log_prob = lambda *args: original(*args) + 1e-3  # as half precision might move it
    with caplog.at_level(logging.WARNING):
        trainer.train()
    logs = [log for log in trainer.state.log_history if "reward" in log]
    assert [log["sampling/replay_difference/mean"] for log in logs] == pytest.approx([1e-3] * 3, rel=1e-3)
    assert caplog.text.count("below the noise of repeating the sampler's steps") == 1


def test_the_noise_of_the_replay_is_not_measured_on_a_policy_that_moved(tmp_path):
    """Not even if an evaluation samples images between the updates from a rollout."""
    trainer = make(
        tmp_path, num_iterations=2, max_steps=4, eval_strategy="steps", eval_steps=1, num_generations_eval=1,
        per_device_eval_batch_size=20, learning_rate=1e-2, eval_dataset=make_dataset(20),
    )  # fmt: skip
    trainer.train()
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert ["sampling/replay_difference/max" in log for log in logs] == [True, False, True, False]


def test_a_run_resumes_with_another_guidance(tmp_path):
    """The generation batch of the checkpoint, which was made with the old one, is dropped."""
    common = {"num_iterations": 4, "save_strategy": "steps", "save_steps": 2}
    make(tmp_path / "a", guidance_scale=2.0, max_steps=2, **common).train()
    again = make(tmp_path / "b", guidance_scale=1.0, max_steps=4, **common)
    again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert again.state.global_step == 4


def test_the_kl_penalty_is_the_same_in_parts(tmp_path):
    """A batch in two micro-batches has the gradient of one. The second update is the first whose KL has a gradient."""
    gradients = []
    for rows in (8, 4):
        trainer = make(
            tmp_path / str(rows), beta=2.0, per_device_train_batch_size=rows, gradient_accumulation_steps=8 // rows,
            sampling_batch_size=8, max_steps=2, learning_rate=0.1, optim="sgd", max_grad_norm=0,
        )  # fmt: skip
        kept = Gradients(trainer)
        trainer.train()
        gradients.append(kept.updates[1]["gradients"])
    scale = max(gradient.abs().max() for gradient in gradients[0].values())
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, rtol=1e-4, atol=1e-6 * scale.item())


@pytest.mark.parametrize(
    "change", [{"eta": 0.5}, {"sde": "dance_grpo"}, {"train_steps": ":-2"}], ids=lambda c: next(iter(c))
)
def test_a_resumed_run_says_which_setting_of_the_sampler_changed(change, tmp_path, caplog):
    common = {"num_iterations": 4, "save_strategy": "steps", "save_steps": 2}
    make(tmp_path / "a", max_steps=2, **common).train()
    again = make(tmp_path / "b", max_steps=3, **common, **change)
    with caplog.at_level(logging.WARNING):
        again.train(resume_from_checkpoint=str(tmp_path / "a" / "checkpoint-2"))
    assert f"`{next(iter(change))}` changed since the checkpoint was saved" in caplog.text


def test_old_log_probs_are_made_in_parts(tmp_path):
    """TRL asks for those of the generation batch at once; memory must be that of a micro-batch."""
    trainer = make(
        tmp_path, per_device_train_batch_size=4, gradient_accumulation_steps=2, num_iterations=2, max_steps=1,
        sampling_batch_size=4,
    )  # fmt: skip
    rows = []
    predict = trainer.sampler.predict
    trainer.sampler.predict = lambda model, chunk, at, step: rows.append(len(at)) or predict(model, chunk, at, step)
    trainer.train()
    assert rows
    assert max(rows) == 4 * 4


def test_reentrant_checkpointing_reaches_the_adapter(tmp_path):
    trainer = make(
        tmp_path, stable_diffusion(tmp_path), darkness, Dataset.from_dict({"prompt": ["a red fox", "blue boat"] * 4}),
        lora=TARGETS, gradient_checkpointing=True, gradient_checkpointing_kwargs={"use_reentrant": True}, max_steps=1,
        **SETTINGS["sd15"],
    )  # fmt: skip
    kept = Gradients(trainer)
    trainer.train()
    (update,) = kept.updates
    adapted = [name for name in update["before"] if "lora_B" in name]
    assert adapted
    assert all(update["gradients"][name].abs().sum() > 0 for name in adapted)


def test_a_pipeline_keeps_its_settings(tmp_path):
    pipeline = stable_diffusion(tmp_path)
    buffers = set(pipeline.unet.state_dict())
    trainer = make(tmp_path, pipeline, darkness, Dataset.from_dict({"prompt": ["a fox"] * 8}), **SETTINGS["sd15"])
    trainer.train()
    assert not getattr(pipeline, "_progress_bar_config", {})
    assert set(pipeline.unet.state_dict()) == buffers
    assert type(pipeline.unet).__name__ == "UNet2DConditionModel"
    assert pipeline.config["unet"] == ("diffusers", "UNet2DConditionModel")


def test_nan_and_failing_rewards_are_guarded(tmp_path):
    def fails(images, prompts, **_):
        if any("3" in prompt for prompt in prompts):
            raise RuntimeError("no threes")
        return [float(i) for i in range(len(images))]

    trainer = make(tmp_path, reward=fails, on_reward_error="exclude", max_steps=6)
    trainer.train()
    trainer = make(tmp_path, reward=fails, max_steps=6)
    with pytest.raises(Exception, match="no threes"):
        trainer.train()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"args": config("out")}, "must be a DiffusionGRPOConfig"),
        ({"train_dataset": Dataset.from_dict({"prompt": ["3"], "image": [0]})}, "column 'image'"),
        ({"rollout_func": print}, "`rollout_func` has no meaning"),
        ({"model": "no/such/place/at/all"}, "cannot load the pipeline"),
        ({"peft_config": LoraConfig()}, "`lora_target_modules` must name"),
        ({"train_dataset": Dataset.from_dict({"text": ["3"]})}, "no column 'prompt'. .*Known: text"),
        ({"reward_funcs": "hps"}, "one of `trl_credit.rewards.images`, imported"),
    ],
    ids=["config", "columns", "rollout", "model", "lora", "prompt", "reward"],
)
def test_what_cannot_work_is_an_error(change, message, tmp_path):
    arguments = {
        "model": "trl_credit:digits",
        "reward_funcs": digit_probability,
        "args": config(tmp_path, kind=DiffusionGRPOConfig, max_completion_length=None),
        "train_dataset": make_dataset(20),
    }
    with pytest.raises(ValueError, match=message):
        DiffusionGRPOTrainer(**(arguments | change))


@pytest.mark.parametrize("lora", [TARGETS, None], ids=["lora", "whole"])
def test_the_hub_gets_what_diffusers_loads(lora, tmp_path, monkeypatch, caplog):
    """And a card that says so. Checkpoints, which hold the denoiser as TRL saves it, stay here."""
    sent = []

    class Hub:
        def upload_folder(self, folder_path, ignore_patterns=(), **_):
            sent.append({path.name for path in Path(folder_path).iterdir()})
            job = Future()
            job.set_result(None)
            return job

    def init(self, token=None):
        self.hub_model_id, self.push_in_progress = "jane/foxes", None

    monkeypatch.setattr(Trainer, "init_hf_repo", init)
    monkeypatch.setattr(transformers.trainer, "hf_api", Hub)
    data, settings = Dataset.from_dict({"prompt": ["a red fox", "blue boat"] * 4}), SETTINGS["sd15"]
    with caplog.at_level(logging.WARNING):
        trainer = make(
            tmp_path / "out", stable_diffusion(tmp_path), darkness, data, lora=lora, max_steps=2, push_to_hub=True,
            save_strategy="steps", save_steps=1, **settings,
        )  # fmt: skip
    trainer.pipeline.config["_name_or_path"] = "jane/base"
    trainer.model.config._name_or_path = "jane/base"
    trainer.train()
    trainer.push_to_hub()
    assert "sent to the hub at the end of the run" in caplog.text
    trainer.save_model()  # as `Trainer` does, this pushes, too
    assert len(sent) == 2
    assert sent[0] == sent[1]
    policy = {"model.safetensors", "config.json", "adapter_model.safetensors", "pytorch_lora_weights.safetensors"}
    expected = {"adapter_model.safetensors", "pytorch_lora_weights.safetensors"} if lora else set()
    assert sent[-1] & policy == expected
    assert ("model_index.json" in sent[-1]) == (lora is None)
    card = ModelCard.load(tmp_path / "out" / "README.md")
    assert (card.data.library_name, card.data.pipeline_tag) == ("diffusers", "text-to-image")
    code = card.text.partition("```python\n")[2].partition("```")[0]
    assert "time machine" not in card.text
    assert f'DiffusionPipeline.from_pretrained("{"jane/base" if lora else "jane/foxes"}")' in code
    assert ('pipeline.load_lora_weights("jane/foxes")' in code) == (lora is not None)
    assert 'pipeline("A red fox", num_inference_steps=5, guidance_scale=3).images[0]' in code
    compile(code, "card", "exec")


def test_diffusers_loads_the_adapter_of_a_checkpoint(tmp_path):
    pipeline, settings = stable_diffusion(tmp_path), SETTINGS["sd15"]
    data = Dataset.from_dict({"prompt": ["a red fox", "blue boat"] * 4})
    trainer = make(
        tmp_path / "out", pipeline, darkness, data, lora=TARGETS, max_steps=1, save_strategy="steps", save_steps=1,
        learning_rate=1e-2, **settings,
    )  # fmt: skip
    trainer.train()
    fresh = stable_diffusion(tmp_path)
    for component in (fresh.unet, fresh.text_encoder, fresh.vae):
        component.eval()
    untrained = draw(fresh, "sd15")
    fresh.load_lora_weights(str(tmp_path / "out" / "checkpoint-1"))
    images = draw(fresh, "sd15")
    torch.testing.assert_close(images, draw(pipeline, "sd15"), rtol=0, atol=2e-6)
    assert (images - untrained).abs().max() > 1e-4


def test_a_reward_of_none_prints_no_tensors(tmp_path, caplog):
    """TRL's warning shows the dataset's row, which holds the trajectory."""

    def unsure(images, **_):
        return [None, *range(1, len(images))]

    trainer = make(tmp_path, reward=unsure, max_steps=1)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    (record,) = [record for record in caplog.records if "None for the following kwargs" in record.getMessage()]
    assert "<trajectory of 4 steps>" in record.getMessage()
    assert len(record.getMessage()) < 2000


def test_a_rollout_that_overflows_is_skipped(tmp_path):
    """A NaN in half of the images is the policy's: it is no sign of a pipeline that changes latents."""
    trainer = make(tmp_path, max_steps=4)
    original, rollouts = trainer.sampler.sample, []

    def overflow(prompts, model, rows=None):
        rollouts.append(len(prompts))
        broken = len(rollouts) == 2

        def policy(**arguments):
            prediction = model(**arguments)
            if broken:
                prediction = prediction.clone()
                prediction[: len(prediction) // 2] = float("nan")
            return prediction

        return original(prompts, policy, rows)

    trainer.sampler.sample = overflow
    trainer.train()
    assert trainer.state.global_step == 4
    assert all(torch.isfinite(value).all() for value in parameters(trainer).values())


def test_several_evaluation_datasets(tmp_path):
    both = DatasetDict(easy=make_dataset(10), other=make_dataset(10))
    trainer = make(tmp_path, eval_dataset=both, num_generations_eval=1, per_device_eval_batch_size=10, max_steps=1)
    trainer.evaluate()
    logged = {name for log in trainer.state.log_history for name in log}
    assert {"eval_easy_runtime", "eval_other_runtime"} <= logged
    wrong = DatasetDict(easy=make_dataset(10), other=Dataset.from_dict({"prompt": ["3"], "images": [0]}))
    with pytest.raises(ValueError, match="column 'images'"):
        make(tmp_path, eval_dataset=wrong)


def test_settings_without_a_meaning(tmp_path):
    made = config(tmp_path, kind=DiffusionGRPOConfig, max_completion_length=None, pad_to_multiple_of=None)
    assert made.pad_to_multiple_of is None  # what TRL makes of its default here
    with pytest.raises(ValueError, match="`use_transformers_paged`"):
        config(tmp_path, kind=DiffusionGRPOConfig, max_completion_length=None, use_transformers_paged=True)
    with pytest.raises(ValueError, match="`pipeline_kwargs` must be a mapping"):
        config(tmp_path, kind=DiffusionGRPOConfig, max_completion_length=None, pipeline_kwargs=" x")


def test_checkpoints_are_not_for_the_hub(tmp_path):
    with pytest.raises(ValueError, match=r"`hub_strategy` \('checkpoint'\) sends checkpoints"):
        make(tmp_path, push_to_hub=True, hub_strategy="checkpoint")


@pytest.mark.parametrize("dynamic", [False, True])
def test_the_table_of_completions_has_the_images(dynamic, tmp_path):
    """For trackers, as TRL's table has those of vision-language models."""
    seen = []

    def reward(images, digit, **_):
        seen.extend(images)
        return digit_probability(images, digit=digit)

    settings = {"dynamic_sampling": True} if dynamic else {}
    trainer = make(tmp_path, reward=reward, log_completions=True, max_steps=2, **settings)
    trainer.train()
    logged = list(trainer._logs["images"])
    assert len(logged) == len(trainer._logs["prompt"]) == 8
    assert [image for (image,) in logged] == seen[-8:]
    trainer = make(tmp_path, log_completions=True, log_multimodal=False, max_steps=1)
    trainer.train()
    assert not trainer._logs["images"]


def test_only_the_denoiser_runs_under_autocast(tmp_path):
    """Half precision would overflow many a VAE."""
    pipeline, seen = stable_diffusion(tmp_path), {}
    for name in ("unet", "vae", "text_encoder"):
        module = getattr(pipeline, name)
        target = module.decoder if name == "vae" else module
        target.register_forward_pre_hook(
            lambda *_, name=name: seen.setdefault(name, []).append(torch.is_autocast_enabled("cpu"))
        )
    trainer = make(
        tmp_path, pipeline, darkness, Dataset.from_dict({"prompt": ["a fox"] * 8}), bf16=True, max_steps=1,
        **SETTINGS["sd15"],
    )  # fmt: skip
    trainer.train()
    assert {name: set(values) for name, values in seen.items()} == {
        "unet": {True},
        "vae": {False},
        "text_encoder": {False},
    }


def test_checkpoints_hold_what_the_update_needs(tmp_path):
    trainer = make(tmp_path, num_iterations=2, max_steps=1, save_strategy="steps", save_steps=1, latents_device="cpu")
    trainer.train()
    state = next((tmp_path / "checkpoint-1").glob("*state*.safetensors"))
    assert any("sampler/latents" in name for name in load_file(state))
    assert json.dumps(trainer.sampler.template)
