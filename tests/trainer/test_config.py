"""Settings that only a trainer can check."""

import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from helpers import config, fixed_rollout, letter_reward, place_reward, prompts
from support.config import Broken
from trl import GRPOConfig

from trl_credit import (
    DGPO,
    GCPO,
    CreditGRPOConfig,
    CreditGRPOTrainer,
    DGPOTrainer,
    GCPOTrainer,
    Uniform,
    build_credit,
)


def test_own_method_by_dotted_path(tmp_path, monkeypatch, tiny_model):
    (tmp_path / "own_method.py").write_text(
        textwrap.dedent("""
        from dataclasses import dataclass
        import torch
        from trl_credit import CreditMethod, Paper

        @dataclass(frozen=True)
        class Surprisal(CreditMethod):
            \"\"\"Credit by -log p.

            Args:
                power: Exponent.
            \"\"\"
            power: float = 1.0
            name = "surprisal"
            paper = Paper("None", "0000.00000", "None")

            def weights(self, inputs):
                scores = torch.where(inputs.mask, (-inputs.policy_logps).clamp(min=1e-6) ** self.power, 0.0)
                return scores * inputs.mask.sum(-1, keepdim=True) / scores.sum(-1, keepdim=True).clamp(min=1e-9)
        """)
    )
    monkeypatch.syspath_prepend(tmp_path)
    credit = {"method": "own_method.Surprisal", "power": 2.0}
    args = config(tmp_path, credit=credit, max_steps=1)
    assert args.credit == credit
    trainer = CreditGRPOTrainer(model=tiny_model, reward_funcs=letter_reward, args=args, train_dataset=prompts())
    trainer.train()
    assert trainer.state.log_history[0]["credit/weight_std"] > 0.1
    sys.modules.pop("own_method")


@pytest.mark.parametrize("kind", ["negative", "twice", "off the mask", "shape", "nan"])
def test_weights_that_are_none_are_refused(kind, tmp_path, tiny_model):
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=place_reward,
        rollout_func=fixed_rollout,
        args=config(tmp_path, credit=Broken(kind)),
        train_dataset=prompts(),
    )
    with pytest.raises(ValueError, match="credit method 'broken': `weights` must"):
        trainer.train()


def test_presets(tiny_model, tmp_path):
    def make(trainer_class, **settings):
        return trainer_class(
            model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path, **settings), train_dataset=prompts()
        )

    assert make(GCPOTrainer).credit_method == GCPO()
    assert make(DGPOTrainer, kind=GRPOConfig).credit_method == DGPO()
    assert make(CreditGRPOTrainer).credit_method == Uniform()
    assert make(GCPOTrainer, credit={"method": "gcpo", "top_mass": 0.9}).credit_method == GCPO(top_mass=0.9)
    with pytest.raises(ValueError, match="`credit` asks for 'dgpo', but GCPOTrainer is preset to 'gcpo'"):
        make(GCPOTrainer, credit="dgpo")
    args = config(tmp_path)
    trainer = GCPOTrainer(model=tiny_model, reward_funcs=letter_reward, args=args, train_dataset=prompts())
    assert args.credit is None  # the caller's config can serve another preset
    assert trainer.args.credit == GCPO().to_dict()


def test_no_args(tiny_model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    @dataclass
    class OnCPU(CreditGRPOConfig):  # the defaults ask for bf16 on a GPU
        use_cpu: bool = True
        bf16: bool | None = False

    monkeypatch.setattr("trl_credit.trainer.grpo.CreditGRPOConfig", OnCPU)
    trainer = DGPOTrainer(tiny_model, letter_reward, train_dataset=prompts())
    assert trainer.args.output_dir == "tiny-DGPO"
    with pytest.raises(TypeError, match="unexpected keyword argument 'reward_func'"):
        DGPOTrainer(tiny_model, reward_func=letter_reward)


def test_checkpoint_and_model_card(tiny_model, tmp_path):
    credit = {"method": "gcpo", "negative_prompt": "!{prompt}\n: #", "top_fraction": 0.3}
    trainer = CreditGRPOTrainer(
        model=tiny_model,
        reward_funcs=letter_reward,
        args=config(tmp_path, credit=credit, save_strategy="steps", save_steps=2, max_steps=2),
        train_dataset=prompts(),
    )
    trainer.train()
    saved = torch.load(tmp_path / "checkpoint-2" / "training_args.bin", weights_only=False)
    expected = GCPO(negative_prompt="!{prompt}\n: #", top_fraction=0.3)
    assert build_credit(saved.credit) == expected
    card = (tmp_path / "README.md").read_text()
    assert "2605.29198" in card
    assert "trained with GCPO" in card
    block = card.partition("```yaml\n")[2].partition("```")[0]
    assert build_credit(yaml.safe_load(block)["credit"]) == expected
    assert "- trl-credit" in card
    assert "- gcpo" in card


def test_model_cards_name_no_folder_and_link_no_file(tiny_model, tmp_path, monkeypatch):
    """TRL links every name to the hub."""
    trainer = CreditGRPOTrainer(tiny_model, letter_reward, config(tmp_path / "out"), train_dataset=prompts())

    def card(name):
        trainer.create_model_card(dataset_name=name)
        return (tmp_path / "out" / "README.md").read_text()

    for name, shown in (
        ("/home/jane/project/train.jsonl", "train.jsonl"),
        ("~/project/", "project"),
        ("reasoning_gym:chain_sum", "reasoning_gym:chain_sum"),
        ("./data/train`.jsonl", "train'.jsonl"),
    ):
        text = card(name)
        assert f"Trained with trl-credit on `{shown}`:" in text
        assert "huggingface.co/datasets" not in text
        assert "datasets:" not in text
        assert "jane" not in text
    text = card("org/problems")
    assert "datasets: org/problems" in text
    assert "on the [org/problems](https://huggingface.co/datasets/org/problems) dataset" in text
    assert "Trained with trl-credit:" in card(None)
    # The model is a folder, or was one when it was loaded
    for base in (tiny_model, "/home/jane/gone"):
        trainer.model.config._name_or_path = base
        text = card(None)
        assert f"fine-tuned version of `{Path(base).name}`." in text
        assert str(Path(base).parent) not in text
        assert "base_model" not in text
    trainer.model.config._name_or_path = "Qwen/Qwen2.5-1.5B"
    text = card(None)
    assert "base_model: Qwen/Qwen2.5-1.5B" in text
    assert "[Qwen/Qwen2.5-1.5B](https://huggingface.co/Qwen/Qwen2.5-1.5B)" in text


@pytest.mark.parametrize("cls", [CreditGRPOTrainer, DGPOTrainer])
def test_resume(cls, tiny_model, tmp_path):
    def make(max_steps):
        return cls(
            model=tiny_model,
            reward_funcs=letter_reward,
            args=config(tmp_path, max_steps=max_steps, save_strategy="steps", save_steps=2),
            train_dataset=prompts(),
        )

    make(2).train()
    trainer = make(4)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert trainer.state.global_step == 4
    if cls is DGPOTrainer:  # the reference is still the initial policy, not the checkpoint
        assert trainer.state.log_history[2]["credit/hellinger"] > 1e-4
