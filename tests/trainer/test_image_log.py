"""Image credit logged during training."""

import copy
import logging
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from helpers import config
from support.pipelines import PIPELINES, SETTINGS

from trl_credit import DiffusionGRPOConfig, DiffusionGRPOTrainer
from trl_credit.records.images import read_parquet
from trl_credit.toy.digits import digit_of, digit_probability, make_dataset


def make(output_dir, pipeline="trl_credit:digits", reward=digit_probability, data=None, **settings):
    defaults = {"max_completion_length": None, "loss_type": "grpo", "learning_rate": 1e-3, "num_inference_steps": 6}
    defaults |= {"num_completions_to_print": 0, "credit": "pcpo"}
    return DiffusionGRPOTrainer(
        pipeline,
        reward,
        config(output_dir, kind=DiffusionGRPOConfig, **(defaults | settings)),
        make_dataset(20) if data is None else data,
    )


def train(output_dir, **settings):
    trainer = make(output_dir, **settings)
    trainer.train()
    return trainer


class Observed:
    """Each update's micro-batches as the loss read them, with the denoiser as it was."""

    def __init__(self, trainer):
        self.updates, self._trainer = {}, trainer
        trainer.credit_observers.append(self)

    def __call__(self, batch, result):
        denoiser = copy.deepcopy(self._trainer.model.denoiser).double()
        step = self._trainer.state.global_step + 1
        self.updates.setdefault(step, []).append((dict(result.view), result, denoiser))

    def row_of(self, step, record):
        """The one row of an update that a record shows."""
        found = [
            (view, result, denoiser, row)
            for view, result, denoiser in self.updates[step]
            for row in range(len(view["advantages"]))
            if np.array_equal(result.inputs.policy_logps[row].numpy(), record.logps)
        ]
        assert len(found) == 1
        return found[0]


def parameters(trainer):
    return {name: value.clone() for name, value in trainer.model.state_dict().items()}


CASES = {
    "pcpo": {},
    "uniform": {"credit": "uniform"},
    "iterations": {"num_iterations": 2},
    "accumulation": {"gradient_accumulation_steps": 2, "per_device_train_batch_size": 4},
    "chunks": {"denoiser_batch_size": 7, "train_steps_drawn": 3, "beta": 0.1},
}


@pytest.mark.parametrize("case", CASES)
def test_a_logged_run_is_the_run(case, tmp_path):
    plain = train(tmp_path / "plain", max_steps=4, **CASES[case])
    logged = make(tmp_path / "logged", max_steps=4, credit_log_steps=2, **CASES[case])
    write = logged._credit_log.on_step_end

    def written(*args, **kwargs):
        random = torch.get_rng_state()
        write(*args, **kwargs)
        assert torch.equal(random, torch.get_rng_state())

    logged._credit_log.on_step_end = written
    logged.train()
    for name, value in parameters(plain).items():
        assert torch.equal(value, parameters(logged)[name]), name
    files = sorted(path.name for path in (tmp_path / "logged" / "credit").iterdir())
    assert files == [f"step-00000{step}.{kind}" for step in (2, 4) for kind in ("html", "parquet")]
    assert logged.clean_estimates is None
    assert logged._credit_log._seen == []


@pytest.mark.parametrize("case", CASES)
def test_what_is_shown_is_what_was_computed(case, tmp_path):
    seen = []

    def reward(images, digit, **columns):
        rewards = digit_probability(images, digit=digit)
        seen.extend(zip(images, rewards, digit, strict=True))
        return rewards

    settings = CASES[case] | {"train_steps": ":"}
    trainer = make(tmp_path, reward=reward, max_steps=4, credit_log_steps=2, credit_log_completions=5, **settings)
    observed = Observed(trainer)
    trainer.train()
    name = trainer.credit_method.name
    for step in (2, 4):
        records, about = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        assert about["step"] == step
        assert about["methods"][name] == trainer.credit_method.to_dict()
        signs = [record.advantage > 0 for record in records]
        assert 2 <= len(records) <= 5
        assert len(records) < 5 or sum(signs) in (2, 3)
        for record in records:
            view, result, denoiser, row = observed.row_of(step, record)
            assert record.steps == view["sampler/steps"][row].tolist()
            assert record.advantage == view["advantages"][row]
            np.testing.assert_array_equal(record.weights[name], result.weights[row])
            np.testing.assert_array_equal(record.native, view["sampler/shares/native"][row])
            advantages = result.row_advantages
            expected = advantages[row] if advantages.dim() == 2 else advantages[row].expand(len(record.steps))
            np.testing.assert_array_equal(record.token_advantages[name], expected)
            old = view.get("old_per_token_logps")
            assert (record.old_logps is None) == (old is None) == (case != "iterations")
            if old is not None:
                np.testing.assert_array_equal(record.old_logps, old[row])

            # The rollout's image, reward and prompt belong together
            value, digit = next(rest for image, *rest in seen if image.tobytes() == record.image.tobytes())
            assert record.reward == pytest.approx(value, rel=1e-6)
            assert digit_of(record.prompt) == digit

            # The clean image, in float64: the latents less t times the velocity
            times = view["sampler/timestep"][row].double() / 1000
            latents = view["sampler/latents"][row].double()
            with torch.no_grad():
                velocity = denoiser(latents, times * 1000, torch.full((len(times),), digit), return_dict=False)[0]
            clean = latents - times.view(-1, 1, 1, 1) * velocity
            for estimate, shown in zip(clean[:, 0], record.clean, strict=True):
                grey = ((estimate + 1) * 127.5).clamp(0, 255).numpy()
                np.testing.assert_allclose(np.asarray(shown, np.float64), grey, atol=0.51)


def test_clean_image_of_the_last_step_without_noise(tmp_path):
    """The deterministic sampler ends at the estimate of its last step."""
    trainer = make(tmp_path, train_steps=":", num_inference_steps=4, eta=1e-6)
    with torch.no_grad():
        trajectories, images = trainer.sampler.sample(["a handwritten 7"], trainer.model, 1)
        trajectory = {name: value.unsqueeze(0) for name, value in trajectories[0].items()}
        row, step = torch.tensor([0]), torch.tensor([3])
        prediction = trainer.sampler.predict(trainer.model, trajectory, row, step)
        clean = trainer.sampler.clean_estimate(prediction, trajectory, row, step)
    assert clean.dtype == torch.float32
    torch.testing.assert_close(clean[0], trajectory["next"][0, 3], atol=1e-5, rtol=0)
    (decoded,) = trainer.sampler.decode(clean)
    assert decoded.tobytes() == images[0].tobytes()


@pytest.mark.parametrize("name", PIPELINES)
def test_pipelines_with_a_vae(name, tmp_path):
    from datasets import Dataset

    def brightness(images, **columns):
        return [float(np.asarray(image).mean()) for image in images]

    data = Dataset.from_dict({"prompt": ["a red fox", "the blue boat", "a fox in snow"] * 4})
    settings = {"per_device_train_batch_size": 4, "max_steps": 1, "credit_log_steps": 1, **SETTINGS[name]}
    train(tmp_path, pipeline=PIPELINES[name](tmp_path), reward=brightness, data=data, **settings)
    records, _ = read_parquet(tmp_path / "credit" / "step-000001.parquet")
    assert len(records) >= 2
    for record in records:
        assert {image.size for image in [record.image, *record.clean]} == {(16, 16)}
        assert record.prompt in data["prompt"]
        assert record.reward == pytest.approx(np.asarray(record.image).mean(), rel=1e-6)
        assert record.steps == [0, 1, 2, 3]


def test_an_update_of_several_rollouts(tmp_path):
    """Prompts and images are those of the rollout that a row came from, not of the last one."""
    settings = {"gradient_accumulation_steps": 3, "steps_per_generation": 1, "per_device_train_batch_size": 4}
    train(tmp_path, max_steps=1, credit_log_steps=1, credit_log_completions=12, **settings)
    records, _ = read_parquet(tmp_path / "credit" / "step-000001.parquet")
    assert len({record.prompt for record in records}) > 1
    for record in records:
        (value,) = digit_probability([record.image], digit=[digit_of(record.prompt)])
        assert record.reward == pytest.approx(value, rel=1e-5)


def test_rows_that_dynamic_sampling_replaces(tmp_path):
    def some(images, digit, **columns):
        return [
            value if one % 2 else 1.0 for value, one in zip(digit_probability(images, digit=digit), digit, strict=True)
        ]

    trainer = train(tmp_path, reward=some, max_steps=3, credit_log_steps=1, dynamic_sampling=True)
    rounds = [entry["dynamic_sampling/rounds"] for entry in trainer.state.log_history if "reward" in entry]
    assert max(rounds) > 1
    for step in (1, 2, 3):
        records, _ = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        for record in records:
            (value,) = digit_probability([record.image], digit=[digit_of(record.prompt)])
            assert record.reward == pytest.approx(value, rel=1e-5)


def test_resumed_in_a_generation_batch(tmp_path):
    """Prompts and images were the rollout's, which is not run again; everything else is there."""
    settings = {"steps_per_generation": 2, "max_steps": 4, "credit_log_steps": 1}
    train(tmp_path, save_strategy="steps", save_steps=1, **settings)
    expected = {step: read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")[0] for step in (2, 3)}
    shutil.rmtree(tmp_path / "credit")
    again = make(tmp_path, save_strategy="steps", save_steps=1, **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
    for step in (2, 3):
        resumed, _ = read_parquet(tmp_path / "credit" / f"step-{step:06d}.parquet")
        for one, other in zip(expected[step], resumed, strict=True):
            assert (one.reward, one.advantage, one.steps) == (other.reward, other.advantage, other.steps)
            assert [image.tobytes() for image in one.clean] == [image.tobytes() for image in other.clean]
            np.testing.assert_array_equal(one.logps, other.logps)
            if step == 2:
                assert other.prompt is None
                assert other.image is None
            else:
                assert other.prompt == one.prompt
                assert other.image.tobytes() == one.image.tobytes()
    assert "sampled before the run was resumed" in (tmp_path / "credit" / "step-000002.html").read_text()


def test_steps_in_the_table_of_completions(tmp_path):
    train(tmp_path, log_completions=True, credit_log_steps=2, max_steps=2)
    tables = [pd.read_parquet(tmp_path / "completions" / f"completions_{step:05d}.parquet") for step in (1, 2)]
    assert "credit/top_tokens" not in tables[0]
    with_credit = tables[1]["advantage"] != 0
    top = tables[1]["credit/top_tokens"]
    assert top.notna().tolist() == with_credit.tolist()
    assert top[with_credit].str.match(r"step 0 \d\.\d\d, step 1 \d\.\d\d, ").all()


def test_a_failure_ends_no_run(tmp_path, caplog, monkeypatch):
    trainer = make(tmp_path, credit_log_steps=1, max_steps=2)

    def fail(latents):
        raise RuntimeError("out of memory")

    monkeypatch.setattr(trainer._credit_log, "_decoded", fail)
    with caplog.at_level(logging.WARNING):
        trainer.train()
    assert caplog.text.count("Cannot write or send the token credit of update") == 2
    assert trainer.state.global_step == 2


def test_trackers(tmp_path, monkeypatch):
    """TensorBoard gets a picture; wandb (offline) the page."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "tb"))
    train(tmp_path / "run", credit_log_steps=1, max_steps=1, report_to=["tensorboard", "wandb"])
    import wandb

    folder = Path(wandb.run.dir)  # elsewhere if another test of this process has used wandb before
    wandb.finish()
    events = EventAccumulator(str(tmp_path / "tb"), size_guidance={"images": 0}).Reload()
    assert events.Tags()["images"] == ["credit"]
    (image,) = events.Images("credit")
    assert image.step == 1
    assert image.width > 6 * 96
    pages = list(folder.glob("media/html/credit_*.html"))
    assert [page.read_bytes() for page in pages] == [(tmp_path / "run" / "credit" / "step-000001.html").read_bytes()]
