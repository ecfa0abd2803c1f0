"""The quickstart trains, and its reward rises."""

import json

import pytest
from helpers import config
from transformers import AutoModelForCausalLM

from trl_credit import CreditGRPOTrainer
from trl_credit import quickstart as run
from trl_credit.methods.registry import standalone_methods
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import (
    correct_answer,
    make_dataset,
)


@pytest.mark.parametrize(
    "name", ["gcpo", *(pytest.param(m, marks=pytest.mark.nightly) for m in standalone_methods() if m != "gcpo")]
)
def test_training_raises_the_reward(name, tmp_path):
    trainer = CreditGRPOTrainer(
        model=embedded_model_path(),
        reward_funcs=correct_answer,
        args=config(
            tmp_path, credit=name, per_device_train_batch_size=64, num_generations=8, max_completion_length=40,
            learning_rate=5e-5, max_steps=60, per_device_eval_batch_size=256, num_generations_eval=1, seed=0,
        ),
        train_dataset=make_dataset(1000, seed=0),
        eval_dataset=make_dataset(512, seed=1),
    )  # fmt: skip
    before = trainer.evaluate()["eval_reward"]
    trainer.train()
    after = trainer.evaluate()["eval_reward"]
    assert after > before + 0.1
    rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
    assert sum(rewards[-20:]) / 20 > sum(rewards[:10]) / 10 + 0.1
    if name == "gcpo":
        fractions = [entry.get("credit/contrast_fraction") for entry in trainer.state.log_history]
        fractions = [fraction for fraction in fractions if fraction is not None]
        assert len(fractions) > 50
        assert min(fractions) > 0.05, "the negative prompt must mean something to the embedded model"


def test_quickstart_runs(tmp_path, capsys):
    run.main(["--output_dir", str(tmp_path), "--max_steps", "2", "--methods", "uniform", '{"method": "dgpo"}', "dgpo"])
    output = capsys.readouterr().out
    assert "Accuracy on held-out problems" in output
    assert "dgpo: the weights were effectively uniform" in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["uniform", "dgpo", "dgpo'"]
    assert results["dgpo"]["rewards"] == results["dgpo'"]["rewards"]  # same start, same seed
    assert (tmp_path / "reward_curves.png").stat().st_size > 10_000
    for name in results:
        AutoModelForCausalLM.from_pretrained(tmp_path / name)
