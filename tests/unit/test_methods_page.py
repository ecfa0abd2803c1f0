"""docs/methods.md says what the code does."""

import dataclasses
import re

import pytest
import yaml
from helpers import ROOT
from support.inputs import built, kind_of, make_inputs

from trl_credit import METHODS, CreditGRPOConfig, build_credit
from trl_credit.methods.metrics import credit_metrics
from trl_credit.methods.mix import Mix


TEXT = (ROOT / "docs" / "methods.md").read_text()

SECTIONS = dict(re.findall(r"^## ([^\n]+)\n(.*?)(?=^## |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))

BLOCKS = [yaml.safe_load(block)["credit"] for block in re.findall(r"```yaml\n(.*?)```", TEXT, flags=re.DOTALL)]

LISTS = [
    yaml.safe_dump(yaml.safe_load(block)["credit"])
    for block in re.findall(r"```yaml\n(.*?)```", SECTIONS["Several methods at once"], flags=re.DOTALL)
]

METRICS = set(re.findall(r"`credit/([\w/.]+)`", SECTIONS["Metrics"]))


def rows() -> dict[str, list[str]]:
    """The cells of the table of methods, by method."""
    table = re.search(r"(?m)^\| method \|.*\n\|[-| ]+\|\n((?:\|.*\n)+)", TEXT)[1]
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    return {name: rest for first, *rest in cells for name in re.findall(r"`(\w+)`", first)}


@pytest.mark.parametrize("name", METHODS)
def test_method_has_a_row_with_its_kind_and_a_section(name):
    kind = rows()[name][0]
    if kind == "controls":
        assert name in ("random", "shuffled")
    else:
        method = built(name)
        assert {"none": "uniform"}.get(kind, kind) == ("factors" if method.shapes_ratio else kind_of(method))
    assert any(name in re.findall(r"\w+", heading) for heading in SECTIONS)


@pytest.mark.parametrize("credit", BLOCKS, ids=str)
def test_blocks_build(credit):
    assert isinstance(build_credit(credit), Mix) == (yaml.safe_dump(credit) in LISTS)
    CreditGRPOConfig(output_dir="out", credit=credit, use_cpu=True, bf16=False)


@pytest.mark.parametrize("name", METHODS)
def test_metrics_are_documented(name):
    method = built(name)
    inputs = make_inputs(method, 3, 6, 20)
    logged = credit_metrics(method, inputs, method.weights(inputs))
    assert {key.removeprefix("credit/") for key in logged} <= METRICS


REFUSED = {
    "`uniform` in a list": ["gcpo", "uniform"],
    "a method twice with the same parameters": ["gcpo", "gcpo"],
    "a list in a list": ["gcpo", ["dgpo", "forking"]],
    "`pcpo`": ["gcpo", "pcpo"],
    "`advantage` without a term": {"method": "mix", "parts": ["gcpo", "dgpo"], "advantage": 0.5},
    "`advantage: 0.0` beside weights": {
        "method": "mix",
        "parts": ["gcpo", {"method": "teacher", "model": "x"}],
        "advantage": 0.0,
    },
    "`guard` without a term": {"method": "mix", "parts": ["gcpo", "dgpo"], "guard": True},
}


@pytest.mark.parametrize("text", REFUSED)
def test_what_a_list_refuses(text):
    assert text in SECTIONS["Several methods at once"]
    with pytest.raises(ValueError, match=r"credit method|listed twice"):
        build_credit(REFUSED[text])


def test_methods_that_stand_alone_are_named():
    section = SECTIONS["Several methods at once"]
    for name, cls in METHODS.items():
        if cls.on_its_own:
            assert f"`{name}`" in section


def test_settings_of_a_list_are_those_of_the_class():
    section = SECTIONS["Several methods at once"]
    for field in dataclasses.fields(Mix):
        assert re.search(rf"`{field.name}\b|^  {field.name}:", section, flags=re.MULTILINE)
