"""The documentation's numbers match the shipped results."""

import json
import re
import shlex

import pytest
import yaml
from helpers import ROOT
from shipped import (
    AGAIN,
    BENCH_ROWS,
    COLUMNS,
    IMAGE_REGIMES,
    REGIMES,
    RESULTS,
    bench_rows,
    image_rows,
    learning_rows,
)

from trl_credit.comparison.plan import parse_methods, read_recipe


TEXT = (ROOT / "docs" / "choosing.md").read_text()


def test_tables_are_those_of_the_results():
    for row in [*learning_rows(), *image_rows(), *bench_rows()]:
        assert row in TEXT.splitlines(), row


def test_no_other_tables_of_numbers():
    numbers = [line for line in TEXT.splitlines() if line.startswith("|") and re.search(r"\d\.\d\d\d", line)]
    assert len(numbers) == len(REGIMES) + 1 + len(BENCH_ROWS) + len(image_rows()) - 2


@pytest.mark.parametrize("regime", [*REGIMES, *IMAGE_REGIMES])
def test_results_are_of_the_recipes(regime):
    """At least ten seeds of every method, made by the command that stands beside them from the recipe as it is."""
    comparison = json.loads((RESULTS / regime / "comparison.json").read_text())
    recipe, section = read_recipe(ROOT / "recipes" / "compare" / f"{regime}.yaml")
    methods, _ = parse_methods(section["methods"])
    made = [m.credit | ({"settings": m.settings} if m.settings else {}) for m in methods]
    assert [(m["label"], m["credit"]) for m in comparison["methods"]] == [
        (m.label, credit) for m, credit in zip(methods, made, strict=True)
    ]
    assert all(len(m["seeds"]) >= 10 and not m["missing"] for m in comparison["methods"])
    for name in (
        "max_steps",
        "learning_rate",
        "num_generations",
        "per_device_train_batch_size",
        "generated_dataset_config",
    ):
        assert comparison["settings"].get(name) == recipe.get(name), name
    command = shlex.split(comparison["command"])
    assert command[:4] == ["trl-credit", "compare", "--config", f"recipes/compare/{regime}.yaml"]
    assert not re.search(r"/(tmp|work|home|root)/", (RESULTS / regime / "comparison.json").read_text())


def test_claims_hold():
    """The sentences of the summary, where the results can say."""
    verdicts = {}
    for regime in REGIMES:
        comparison = json.loads((RESULTS / regime / "comparison.json").read_text())
        for row in comparison["differences"]:
            if row["quantity"] == "mean_reward":
                verdicts[regime, row["label"]] = row["verdict"]
    assert "better" not in verdicts.values()
    assert all(verdicts[regime, "dgpo adaptive"] == "worse" for regime in REGIMES)
    again = json.loads((RESULTS / AGAIN / "comparison.json").read_text())
    assert not {*again["seeds"]} & {*json.loads((RESULTS / "long" / "comparison.json").read_text())["seeds"]}
    assert {label for _, label in verdicts} == set(COLUMNS)
    drift = json.loads((RESULTS / "bench" / "bench.json").read_text())["drift"]
    leads = [
        drift[updates]["scores"]["gcpo"]["own_error_style"]["auroc"]["mean"]
        - drift[updates]["scores"]["surprisal"]["own_error_style"]["auroc"]["mean"]
        for updates in ("0", "20", "80")
    ]
    assert 0 < leads[0] < leads[1] < leads[2]


def test_claims_about_images_hold():
    """Each sentence of the section, in its order."""
    found = {name: json.loads((RESULTS / name / "comparison.json").read_text()) for name in IMAGE_REGIMES}
    rows = {
        name: {(row["quantity"], row["label"]): row for row in comparison["differences"]}
        for name, comparison in found.items()
    }
    means = {
        name: {m["label"]: m["quantities"]["mean_reward"]["mean"] for m in comparison["methods"]}
        for name, comparison in found.items()
    }
    two_out, equal = "uniform, 2 steps out", "pcpo equal steps"
    everything = means["digits_all_steps"]
    assert everything["uniform"] < everything["pcpo"] < everything["uniform, 1 step out"] < everything[two_out]
    assert rows["digits"]["mean_reward", "pcpo"]["verdict"] == "noise"
    assert rows["digits"]["updates_to_target", "pcpo"]["verdict"] == "better"
    updates = {m["label"]: m["quantities"]["updates_to_target"]["mean"] for m in found["digits"]["methods"]}
    assert round(100 * (1 - updates["pcpo"] / updates["uniform"])) == 9
    assert abs(means["digits"]["pcpo"] - means["digits"][two_out]) < 1e-3
    forms = ("pcpo", "pcpo ratio", "pcpo advantage")
    assert all(rows["digits_reuse"]["mean_reward", label]["verdict"] == "better" for label in forms)
    assert max(rows["digits_reuse"]["mean_reward", label]["p_holm"] for label in forms) < 0.028
    updates = {m["label"]: m["quantities"]["updates_to_target"]["mean"] for m in found["digits_reuse"]["methods"]}
    assert [round(100 * (1 - updates[label] / updates["uniform"])) for label in forms] == [5, 11, 11]
    assert means["digits_reuse"][two_out] > max(means["digits_reuse"][label] for label in forms)
    assert all(rows[name]["mean_reward", equal]["verdict"] == "better" for name in IMAGE_REGIMES)
    assert all(means[name][equal] > means[name][two_out] for name in IMAGE_REGIMES)
    distance = "at_target/frechet_distance"
    assert all(rows[name][distance, two_out]["verdict"] == "lower" for name in IMAGE_REGIMES)
    assert all(rows[name][distance, "pcpo"]["verdict"] == "noise" for name in IMAGE_REGIMES)


def test_pictures_and_links_are_there():
    for text, folder in ((TEXT, ROOT / "docs"), ((ROOT / "README.md").read_text(), ROOT)):
        for target in re.findall(r"\]\(((?!http)[^)#]+)\)", text):
            assert (folder / target).exists(), target
    assert yaml.safe_load((ROOT / "recipes" / "compare" / "plain.yaml").read_text())["compare"]["seeds"] >= 10
