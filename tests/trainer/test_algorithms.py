"""docs/algorithms.md against real updates."""

import re

import pytest
from helpers import ROOT
from support.algorithms import table

from trl_credit import train


TEXT = (ROOT / "docs" / "algorithms.md").read_text()


# Dynamic sampling


@pytest.fixture(scope="module")
def dapo_run(tmp_path_factory):
    """recipes/dapo.yaml for four rollouts, with a limit that cuts completions short."""
    folder = tmp_path_factory.mktemp("dapo")
    line = ["--config", str(ROOT / "recipes" / "dapo.yaml"), "--output_dir", str(folder), "--max_steps", "8"]
    return train.main([*line, "--max_completion_length", "25", "--logging_steps", "1"]).state.log_history


def test_metrics_are_those_that_are_logged(dapo_run):
    rollouts = [row for row in dapo_run if "reward" in row]
    assert len(rollouts) == 4
    logged = {name.removeprefix("dynamic_sampling/") for row in rollouts for name in row if "dynamic_sampling" in name}
    documented = [name for row in table("Dynamic sampling", 1) for name in re.findall(r"`(\w+)`", row["metric"])]
    assert set(documented) == logged
    sums = re.search(r"prompts of all rounds: (.*?) \|", TEXT)[1]
    for row in rollouts:
        value = {name: row[f"dynamic_sampling/{name}"] for name in documented}
        assert value["prompts_drawn"] == sum(value[name] for name in re.findall(r"`(\w+)`", sums))
        assert value["kept"] + value["left"] == 16  # groups of a rollout
        assert value["left"] or row["frac_reward_zero_std"] == 0


def test_every_part_of_dapo_acts(dapo_run):
    assert any(row.get("completions/clipped_ratio", 0) > 0 for row in dapo_run)
    assert any(row.get("rewards/soft_overlong_punishment_reward/mean", 0) < 0 for row in dapo_run)
    assert any(row.get("dynamic_sampling/rounds", 0) > 1 for row in dapo_run)
    assert all("kl" not in row for row in dapo_run)
