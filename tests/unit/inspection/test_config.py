"""Settings of `trl-credit inspect`."""

import pytest
from helpers import ROOT

from trl_credit.inspection import cli
from trl_credit.inspection.config import InspectConfig


QUICKSTART = str(ROOT / "recipes" / "quickstart.yaml")


# The command


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({}, "Say what to show"),
        ({"model": "m", "prompts": ["a"], "dataset_name": "d"}, r"Say what to show: one of .* got `prompts` and"),
        ({"prompts": ["a"]}, "`model` is not set"),
        ({"model": "m", "prompts": ["a"], "methods": ["gcpoo"]}, "Did you mean 'gcpo'"),
        ({"model": "m", "prompts": ["a"], "num_generations": 1}, "`num_generations` must be at least 2, got 1"),
        ({"model": "m", "prompts": ["a"], "temperature": 0.0}, "`temperature` must be positive"),
        (
            {"model": "m", "prompts": ["a"], "num_generations": 2, "methods": ["rlcsd"]},
            r"`num_generations` \(2\): credit method 'rlcsd'",
        ),
        ({"completions": "x", "reward_funcs": ["accuracy"]}, "`reward_funcs` has no effect with `completions`"),
        ({"model": "m", "recipe": "no.yaml"}, "`recipe`: cannot read 'no.yaml'"),
    ],
)
def test_settings_are_checked(settings, message):
    with pytest.raises(ValueError, match=message):
        InspectConfig(**settings)


def test_methods_of_the_settings(tmp_path):
    chosen = InspectConfig(model="trl_credit:quickstart", prompts=["a"]).credit_methods()
    assert list(chosen) == ["uniform", "gcpo", "dgpo", "forking", "random"]
    chosen = InspectConfig(model="m", prompts=["a"], methods=["dgpo", "gcpo"], reference="base").credit_methods()
    assert chosen["dgpo"].reference == "base"
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        "model_name_or_path: m\ndataset_name: d\ntemperature: 0.5\nbf16: false\nuse_cpu: true\n"
        "credit: {method: dgpo, temperature: 0.1, reference: own}\n"
    )
    read = InspectConfig(recipe=str(recipe), reference="base")
    assert (read.model, read.dataset_name, read.temperature) == ("m", "d", 0.5)
    assert list(read.credit_methods()) == ["uniform", "dgpo"]
    assert read.credit_methods()["dgpo"].reference == "own"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such.yaml"], "`recipe`: cannot read 'no/such.yaml'"),
        (["--config", QUICKSTART], f"{QUICKSTART!r} is a recipe: write --recipe {QUICKSTART}"),
        ([QUICKSTART, "--methods", "uniform", "gcpoo", "--num_prompts", "1"], "Unknown credit method 'gcpoo'"),
        ([QUICKSTART, "--methods", '{"method": "gcpo", "top_mas": 1}'], "Did you mean 'top_mass'"),
        ([QUICKSTART, "--methods", "gcpo,dgpo"], "--methods gcpo dgpo"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as error:
        cli.main(words)
    assert error.value.code == 2
    assert message in capsys.readouterr().err


def test_a_parameter_of_a_method_among_the_fields_of_inspect(capsys):

    with pytest.raises(SystemExit):
        cli.main(["--entropy_exponent", "2"])
    assert (
        "It is a parameter of a credit method: write `methods: {method: dgpo, entropy_exponent: ...}`"
        in capsys.readouterr().err
    )
