"""docs/algorithms.md says what the code does."""

import contextlib
import re
from pathlib import Path

import pytest
import yaml
from helpers import ROOT
from support.algorithms import SECTIONS, table
from support.inputs import built, kind_of

from trl_credit import CreditGRPOConfig, build_credit
from trl_credit.methods.registry import methods_for
from trl_credit.recipe.recipe import Recipe
from trl_credit.rewards import build_reward
from trl_credit.trainer.exactness import IMPORTANCE_SAMPLING_LEVELS, RATIO_GRADIENT_LOSSES, check_old_policy


TEXT = (ROOT / "docs" / "algorithms.md").read_text()

ON_CPU = ["--use_cpu", "true", "--bf16", "false"]

ALL_BLOCKS = {
    name: yaml.safe_load(text.split("```")[1].removeprefix("yaml"))
    for name, text in SECTIONS.items()
    if "```yaml" in text
}

METHOD_BLOCKS = {name: block for name, block in ALL_BLOCKS.items() if "credit" in block}

BLOCKS = {name: block for name, block in ALL_BLOCKS.items() if name not in METHOD_BLOCKS}

FIELDS = {row["algorithm"]: row for row in table("Which fields make which algorithm")}

KINDS = {row.pop("algorithm"): row for row in table("Which go with which credit method")}

PAIRS = [(name, method) for name in KINDS for method in methods_for("tokens")]


def parsed(settings: dict, tmp_path: Path, *extra: str) -> tuple:
    """What `trl-credit train` makes of a block."""
    recipe = {"output_dir": str(tmp_path), "report_to": "none", "per_device_train_batch_size": 8, **settings}
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))
    return Recipe.read(["--config", str(path), *ON_CPU, *extra])


def test_every_algorithm_has_a_row_and_a_block():
    names = ["GRPO", "Dr. GRPO", "DAPO", "GSPO", "GSPO-token", "CISPO"]
    assert list(BLOCKS) == names
    assert list(FIELDS) == names
    assert list(KINDS) == names


@pytest.mark.parametrize("name", BLOCKS)
def test_block_is_the_row_of_the_table(name, tmp_path):
    block, row = BLOCKS[name], FIELDS[name]
    script_args, training_args, _, _ = parsed(block, tmp_path)
    for field, value in block.items():
        assert getattr(script_args if field == "reward_funcs" else training_args, field) == value, field
    in_table = {field.strip("`"): value for field, value in row.items() if field.startswith("`")}
    assert in_table == {field: str(block.get(field, "-")) for field in in_table}
    assert re.fullmatch(r"\[(\d{4}\.\d{5})\]\(https://arxiv\.org/abs/\1\)", row["paper"])
    for spec in script_args.reward_funcs or []:
        assert callable(build_reward(spec, training_args.max_completion_length))


def test_the_papers_values(tmp_path):
    """Against a slip of the pen in block and table alike."""
    args = {name: parsed(block, tmp_path)[1] for name, block in BLOCKS.items()}
    assert {name: a.loss_type for name, a in args.items()} == {
        "GRPO": "grpo", "Dr. GRPO": "dr_grpo", "DAPO": "dapo", "GSPO": "grpo", "GSPO-token": "grpo", "CISPO": "cispo",
    }  # fmt: skip
    levels = ["token", "token", "token", "sequence", "sequence_token", "token"]
    assert [a.importance_sampling_level for a in args.values()] == levels
    assert [name for name, a in args.items() if a.scale_rewards == "none"] == ["Dr. GRPO"]
    assert [name for name, a in args.items() if a.beta] == ["GRPO"]
    assert [name for name, a in args.items() if a.dynamic_sampling] == ["DAPO"]
    assert args["CISPO"].epsilon_high > 1  # the cap of the ratio itself
    assert (args["DAPO"].epsilon, args["DAPO"].epsilon_high) == (0.2, 0.28)
    for name in ("GSPO", "GSPO-token"):
        assert (args[name].epsilon, args[name].epsilon_high) == (3e-4, 4e-4)
        assert args[name].steps_per_generation == 4 * args[name].gradient_accumulation_steps


@pytest.mark.parametrize(("name", "method"), PAIRS, ids=["-".join(pair) for pair in PAIRS])
def test_credit_method_is_taken_or_refused(name, method, tmp_path):
    credit = built(method)
    (cell,) = (cell for kind, cell in KINDS[name].items() if kind.strip("`") == kind_of(credit))
    verdict = re.match(r"yes|refused", cell)[0]
    refused = pytest.raises(ValueError, match=f"cancels the token credit of '{method}'")
    with refused if verdict == "refused" else contextlib.nullcontext():
        args = parsed({**BLOCKS[name], "credit": credit.to_dict()}, tmp_path)[1]
        assert args.credit == credit.to_dict()


def test_every_kind_has_a_column_and_a_method():
    kinds = [kind.strip("`") for kind in KINDS["GRPO"]]
    assert kinds == ["uniform", "weights", "factors", "terms", "own advantages"]
    assert {kind_of(built(method)) for method in methods_for("tokens")} <= set(kinds)


def test_methods_that_need_updates_off_policy_are_those_of_the_text(tmp_path):
    (text,) = re.findall(r"need updates off-policy: (.*?)\.", TEXT)
    needy = [method for method in methods_for("tokens") if built(method).needs_old_policy]
    assert re.findall(r"`(\w+)`", text) == needy
    for name, block in BLOCKS.items():
        args = parsed(block, tmp_path)[1]
        for method in needy:
            off_policy = name in ("GSPO", "GSPO-token")
            with contextlib.nullcontext() if off_policy else pytest.raises(ValueError, match="has no effect here"):
                check_old_policy(built(method), args)


def test_every_method_has_a_block_and_a_list_has_one():
    *alone, together = METHOD_BLOCKS
    assert together == "A list"
    assert isinstance(METHOD_BLOCKS[together]["credit"], list)
    assert TEXT.count("```yaml") == len(ALL_BLOCKS)  # none stands below the same heading as another
    assert alone == methods_for("tokens")
    for name in alone:
        credit = METHOD_BLOCKS[name]["credit"]
        assert (credit["method"] if isinstance(credit, dict) else credit) == name


@pytest.mark.parametrize("name", METHOD_BLOCKS)
def test_block_of_a_method_is_a_recipe(name, tmp_path):
    block = METHOD_BLOCKS[name]
    training_args = parsed(block, tmp_path)[1]
    method = build_credit(block["credit"])
    assert training_args.credit == method.to_dict()
    check_old_policy(method, training_args)
    for field, value in block.items():
        assert field == "credit" or getattr(training_args, field) == value, field


def test_every_loss_and_level_is_refused_as_the_text_says(tmp_path):
    (text,) = re.findall(r"for every loss whose gradient goes through the ratio: (.*?)\.", TEXT, flags=re.DOTALL)
    through_ratio = set(re.findall(r"`(\w+)`", text))
    assert through_ratio == set(RATIO_GRADIENT_LOSSES)
    for loss_type in (*RATIO_GRADIENT_LOSSES, "cispo", "vespo"):
        for level in IMPORTANCE_SAMPLING_LEVELS:
            expected = {
                "token": True,
                "sequence": loss_type not in through_ratio,
                "sequence_token": loss_type in through_ratio,
            }[level]
            block = {"loss_type": loss_type, "importance_sampling_level": level, "credit": "gcpo"}
            with contextlib.nullcontext() if expected else pytest.raises(ValueError, match=level):
                parsed(block, tmp_path)


# DAPO


PARTS = table("DAPO")


def test_parts_are_those_of_the_recipe():
    header = (ROOT / "recipes" / "dapo.yaml").read_text()
    listed = re.findall(r"^#   (\S.*?)  +--", header, flags=re.MULTILINE)
    assert [row["part"] for row in PARTS] == listed


@pytest.mark.parametrize("row", PARTS, ids=[row["part"] for row in PARTS])
def test_part_is_switched_off(row, tmp_path):
    options = re.match("`(.*?)`", row["switched off by"])[1].split()
    name = row["field"].strip("`").partition(":")[0]
    script_args, off, _, _ = parsed(BLOCKS["DAPO"], tmp_path, *options)
    if name == "reward_funcs":
        assert script_args.reward_funcs == ["accuracy"]
    else:
        stated = yaml.safe_load(row["field"].strip("`"))[name]
        assert BLOCKS["DAPO"][name] == stated
        assert getattr(off, name) != stated


def test_lengths_are_those_of_the_run():
    own = yaml.safe_load(re.search(r"`(\{name: soft_overlong_punishment.*?\})`", TEXT)[1])
    assert build_reward(own, 10).max_completion_len == 4096
    paper = build_reward("soft_overlong_punishment", 20480)
    assert (paper.max_completion_len, paper.soft_punish_cache) == (20480, 4096)


def test_fields_are_those_of_the_config():
    documented = {row["field"].strip("`") for row in table("Dynamic sampling")}
    known = {name for name in CreditGRPOConfig.__dataclass_fields__ if name.startswith("dynamic_sampling")}
    assert documented == known - {"dynamic_sampling"}
