"""Settings of the trainer, checked before a model is loaded."""

import json

import pytest
from helpers import config, letter_reward, prompts
from support.config import Broken, Trio
from trl import GRPOConfig, TrlParser

from trl_credit import (
    DGPO,
    GCPO,
    CreditGRPOConfig,
    DGPOTrainer,
    GCPOTrainer,
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
        ("none", ValueError, "Unknown credit method 'none'. Known: certainty, delta, "),
        ({"method": "gcpo", "top_fracton": 0.2}, ValueError, "no parameter 'top_fracton'. Did you mean 'top_fraction'"),
        ({"method": "uniform", "temperature": 1}, ValueError, "'uniform' has no parameter 'temperature'"),
        ({"temperature": 1}, ValueError, "`credit` mapping has no `method` name"),
        ({"method": 3}, ValueError, "`credit` mapping has no `method` name"),
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
        ('{"method": "gcpo", top_fraction: ', ValueError, "`credit` is not valid JSON"),
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


def test_a_method_without_its_paper_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(Broken, "paper", None)
    with pytest.raises(ValueError, match=r"Broken' needs the class attributes `name` .* `paper`"):
        config(tmp_path, credit=f"{Broken.__module__}.Broken")


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


@pytest.mark.parametrize("credit", ["rlcsd", f"{Trio.__module__}.Trio", ["gcpo", f"{Trio.__module__}.Trio"]])
def test_too_few_completions_to_compare_are_refused(credit, tmp_path):
    with pytest.raises(ValueError, match=r"`num_generations` \(2\): .* Set `num_generations` to at least 3"):
        config(tmp_path, credit=credit, num_generations=2)
    config(tmp_path, credit=credit, num_generations=4)


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


@pytest.mark.parametrize("text", ["{enable_thinking: no, depth: 1e-5}", '{"enable_thinking": false, "depth": 1e-5}'])
def test_mappings_of_trl_as_text(text, tmp_path):
    found = config(
        tmp_path, chat_template_kwargs=text, generation_kwargs=text, credit="{method: dgpo, temperature: 5e-1}"
    )
    assert found.chat_template_kwargs == found.generation_kwargs == {"enable_thinking": False, "depth": 1e-5}
    assert found.credit["temperature"] == 0.5
    with pytest.raises(ValueError, match="`generation_kwargs` is not valid YAML"):
        config(tmp_path, generation_kwargs="{x")
