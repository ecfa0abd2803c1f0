import json
import sys
import textwrap
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
import yaml
from helpers import config, fixed_rollout, letter_reward, place_reward, prompts
from trl import GRPOConfig, TrlParser

from trl_credit import (
    DGPO,
    GCPO,
    CreditGRPOConfig,
    CreditGRPOTrainer,
    CreditMethod,
    DGPOTrainer,
    GCPOTrainer,
    Paper,
    Uniform,
    build_credit,
)
from trl_credit._version import warn_if_untested


@pytest.mark.parametrize(
    ("credit", "expected"),
    [
        ("uniform", Uniform()),
        ("dgpo", DGPO()),
        ({"method": "dgpo", "temperature": 0.25}, DGPO(temperature=0.25)),
        ('{"method": "gcpo", "top_fraction": 0.2}', GCPO(top_fraction=0.2)),
        (GCPO(top_mass=0.9), GCPO(top_mass=0.9)),
        ({"method": "dgpo", "temperature": "5e-3"}, DGPO(temperature=0.005)),  # what YAML makes of 5e-3
        ({"method": "dgpo", "temperature": 1}, DGPO(temperature=1)),
        ("trl_credit.methods.dgpo.DGPO", DGPO()),
    ],
)
def test_credit(credit, expected, tmp_path):
    assert build_credit(credit) == expected
    args = config(tmp_path, credit=credit)
    assert build_credit(args.credit) == expected
    assert json.loads(json.dumps(args.to_dict()))["credit"] == expected.to_dict()


@pytest.mark.parametrize(
    ("credit", "error", "message"),
    [
        ("dgop", ValueError, "Unknown credit method 'dgop'. Did you mean 'dgpo'?"),
        ("none", ValueError, "Unknown credit method 'none'. Known: dgpo, gcpo, uniform"),
        ({"method": "gcpo", "top_fracton": 0.2}, ValueError, "no parameter 'top_fracton'. Did you mean 'top_fraction'"),
        ({"method": "uniform", "temperature": 1}, ValueError, "'uniform' has no parameter 'temperature'"),
        ({"temperature": 1}, ValueError, "without the name of a method"),
        ({"method": 3}, ValueError, "without the name of a method"),
        ({"method": "dgpo", "temperature": "hot"}, ValueError, "`temperature` must be a number or 'adaptive', got 'hot'"),
        ({"method": "dgpo", "temperature": True}, TypeError, "`temperature` must be float | str, got True"),
        ({"method": "dgpo", "temperature": 0}, ValueError, "`temperature` must be positive and finite, got 0"),
        ({"method": "dgpo", "temperature": -1}, ValueError, "`temperature` must be positive and finite, got -1"),
        ({"method": "dgpo", "temperature": float("nan")}, ValueError, "`temperature` must be positive and finite"),
        ({"method": "dgpo", "entropy_exponent": -0.1}, ValueError, "`entropy_exponent` must be non-negative"),
        ({"method": "dgpo", "temperature": "adaptive", "effective_fraction": 1.5}, ValueError, "`effective_fraction` must"),
        ({"method": "dgpo", "temperature": 0.1, "effective_fraction": 0.5}, ValueError, "has no effect"),
        ({"method": "dgpo", "reference": 3}, TypeError, "`reference` must be str | None, got 3"),
        ({"method": "gcpo", "top_fraction": 1.0}, ValueError, "`top_fraction` must be between 0 and 1"),
        ({"method": "gcpo", "top_mass": 0.2}, ValueError, "`top_mass` must be at least top_fraction (0.4)"),
        ({"method": "gcpo", "negative_prompt": "wrong_anwser"}, ValueError, "Did you mean 'wrong_answer'"),
        ({"method": "gcpo", "negative_prompt": "be wrong"}, ValueError, "a text with the slot {prompt}"),
        ('{"method": "gcpo", top_fraction: 1}', ValueError, "`credit` is not valid JSON"),
        ("no_such_module.Method", ValueError, "Cannot load the credit method 'no_such_module.Method'"),
        ("trl_credit.methods.dgpo.dgpo_weights", ValueError, "not a subclass of trl_credit.CreditMethod"),
        (3.5, TypeError, "`credit` must be the name of a method"),
    ],
)  # fmt: skip
def test_bad_credit(credit, error, message, tmp_path):
    with pytest.raises(error) as raised:
        config(tmp_path, credit=credit)
    assert message in str(raised.value)


@pytest.mark.parametrize("credit", ["dgpo", '{"method": "dgpo", "temperature": 0.25}'])
def test_from_the_command_line(credit, tmp_path):
    parser = TrlParser(CreditGRPOConfig)
    line = ["--output_dir", str(tmp_path), "--use_cpu", "true", "--bf16", "false", "--credit", credit]
    (args,) = parser.parse_args_and_config(line)
    assert build_credit(args.credit) == build_credit(credit)


def test_from_yaml(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("output_dir: out\nuse_cpu: true\nbf16: false\ncredit: {method: dgpo, temperature: 5e-3}\n")
    (args,) = TrlParser(CreditGRPOConfig).parse_args_and_config(["--config", str(recipe)])
    assert build_credit(args.credit) == DGPO(temperature=0.005)
    (args,) = TrlParser(CreditGRPOConfig).parse_args_and_config(["--config", str(recipe), "--credit", "gcpo"])
    assert build_credit(args.credit) == GCPO()


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


@dataclass(frozen=True)
class Broken(CreditMethod):
    """Weights that are none.

    Args:
        kind: How.
    """

    kind: str = "negative"
    name = "broken"
    paper = Paper("None", "0000.00000", "None")

    def weights(self, inputs):
        ones = inputs.mask.float()
        return {
            "negative": -ones, "twice": 2 * ones, "off the mask": torch.ones_like(ones), "shape": ones[:, :1],
            "nan": ones * float("nan"),
        }[self.kind]  # fmt: skip


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


def test_a_method_without_its_paper_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Broken, "paper", None)
    with pytest.raises(ValueError, match=r"Broken' needs the class attributes `name` .* `paper`"):
        config(tmp_path, credit=f"{__name__}.Broken")


@pytest.mark.parametrize("loss_type", ["grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo"])
@pytest.mark.parametrize("credit", ["gcpo", "dgpo"])
def test_sequence_level_ratios_are_refused(loss_type, credit, tmp_path, tiny_model):
    settings = {"importance_sampling_level": "sequence", "loss_type": loss_type}
    with pytest.raises(ValueError, match=f"cancels the token credit of '{credit}' with `loss_type='{loss_type}'`"):
        config(tmp_path, credit=credit, **settings)
    preset = {"gcpo": GCPOTrainer, "dgpo": DGPOTrainer}[credit]
    with pytest.raises(ValueError, match="cancels the token credit"):
        preset(
            model="no/such/model",  # refused before anything is loaded
            reward_funcs=letter_reward,
            args=config(tmp_path, kind=GRPOConfig, **settings),
            train_dataset=prompts(),
        )


@pytest.mark.parametrize("loss_type", ["cispo", "vespo"])
def test_sequence_level_that_keeps_token_credit_is_allowed(loss_type, tmp_path):
    config(tmp_path, credit="gcpo", importance_sampling_level="sequence", loss_type=loss_type)
    config(tmp_path, credit="uniform", importance_sampling_level="sequence", loss_type="grpo")


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


def test_version_warning():
    with pytest.warns(UserWarning, match=r"tested with TRL 1\.16 to 1\.16; TRL 1\.17\.0 is installed"):
        warn_if_untested("1.17.0")
    with pytest.warns(UserWarning, match=r"TRL 1\.9\.2 is installed"):
        warn_if_untested("1.9.2")


def test_no_version_warning_inside_the_range(recwarn):
    warn_if_untested("1.16.3")
    assert not recwarn.list


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"importance_sampling_level": "seqence"}, "unknown value 'seqence'. Did you mean 'sequence'"),
        ({"max_nonfinite_updates": 0}, "`max_nonfinite_updates` must be at least 1, got 0"),
        ({"max_nonfinite_updates": 1.5}, "`max_nonfinite_updates` must be a whole number, at least 1, got 1.5"),
        ({"reward_timeout": -1}, "or 0 for no limit, got -1"),
        ({"reward_timeout": None}, "or 0 for no limit, got None"),
        ({"reward_timeout": 1e12}, "at most 30 days"),
        ({"on_reward_error": "ignore"}, "`on_reward_error`: unknown value 'ignore'. Known: exclude, raise"),
        ({"enable_jit_checkpoint": True, "save_only_model": True}, "which `save_only_model=True` leaves incomplete"),
    ],
)
def test_settings_of_runs_that_survive(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)
