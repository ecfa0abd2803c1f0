"""Page and pictures of a comparison."""

import itertools
import re
from pathlib import Path

import pytest
from support.comparison import make_comparison

from trl_credit.comparison import output, results
from trl_credit.comparison.page import (
    forest_chart,
    learning_chart,
    plot_learning_curves,
    style_of,
    ticks,
    write_learning_report,
)
from trl_credit.comparison.plan import (
    command_of,
    read_plan,
    write_plan,
)


@pytest.mark.parametrize(("seeds", "updates"), [(1, 1), (1, 3), (2, 12), (10, 80)])
def test_pages_and_pictures_of_any_size(tmp_path, seeds, updates):
    the_plan, runs = make_comparison(seeds=seeds, updates=updates)
    for run in runs["gcpo"].values():
        run["history"]["reward"] = [0.0] * updates
    found = results.summarize(the_plan, runs)
    write_learning_report(tmp_path / "a.html", found)
    plot_learning_curves(tmp_path / "a.png", found)
    plot_learning_curves(tmp_path / "a.svg", found)
    text = (tmp_path / "a.html").read_text()
    assert not re.search(r"\bnan\b", text)
    assert "http" not in text.replace("http-equiv", "")
    assert (learning_chart(found, "reward") is None) is False
    output.show(found)


def test_hostile_labels_are_text(tmp_path):
    hostile = "</script><script>alert(1)</script> $\\frac|"
    the_plan, runs = make_comparison(labels=("uniform", hostile), seeds=3, updates=10)
    found = results.summarize(the_plan, runs)
    write_learning_report(tmp_path / "a.html", found)
    assert "<script>alert" not in (tmp_path / "a.html").read_text()
    plot_learning_curves(tmp_path / "a.png", found)
    output.show(found)


def test_a_comparison_s_files_have_no_keys_and_its_page_no_folders(tmp_path):
    the_plan, runs = make_comparison(seeds=3, updates=10)
    the_plan.recipe = {"hub_token": "hf_SECRET", "model_name_or_path": "/home/jane/model"}
    the_plan.overrides = ["--vllm_server_base_url", "http://h/v1?key=SECRET"]
    the_plan.settings = dict(the_plan.recipe)
    the_plan.command = command_of(the_plan, Path("/home/jane/recipe.yaml"), Path("/home/jane/out"))
    assert "SECRET" not in the_plan.command
    write_plan(tmp_path, the_plan)
    assert "SECRET" not in (tmp_path / "plan.json").read_text()
    write_learning_report(tmp_path / "a.html", results.summarize(read_plan(tmp_path), runs))
    text = (tmp_path / "a.html").read_text()
    assert "SECRET" not in text
    assert "jane" not in text
    assert "recipe.yaml" in text


def test_styles_differ_without_colour():
    styles = [style_of(place) for place in range(36)]
    assert len(set(styles)) == 36
    assert len({dashes for _, dashes in styles[:6]}) == 6


@pytest.mark.parametrize(("low", "high"), [(0, 1), (-0.3, 0.3), (8, 80), (0.6021, 0.6022), (1e3, 9e5)])
def test_ticks_are_round_and_within(low, high):
    found = ticks(low, high)
    assert 2 <= len(found) <= 6
    assert low - 1e-9 <= found[0] < found[-1] <= high + 1e-6 * high
    assert len({round(b - a, 9) for a, b in itertools.pairwise(found)}) == 1


def test_forest_needs_differences():
    the_plan, runs = make_comparison()
    found = results.summarize(the_plan, runs)
    assert "row-label" in forest_chart(found, results.BY_NAME["mean_reward"])
    assert forest_chart(found | {"differences": []}, results.BY_NAME["mean_reward"]) is None
