"""The example files: the notebook is clean, imports exist, and `uv run` finds the dependencies."""

import ast
import importlib
import json
import re
import sys
import tomllib

import nbformat
import pytest
import torch
from helpers import ROOT
from packaging.requirements import Requirement
from support.inputs import credit, make_inputs, make_rollout

import trl_credit
from trl_credit import CreditMethod


EXAMPLES = ROOT / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
# The block as PEP 723 defines it
BLOCK = re.compile(r"(?m)^# /// script$\s(?P<content>(^#(| .*)$\s)+)^# ///$")


def metadata_of(script) -> dict:
    match = BLOCK.search(script.read_text())
    return tomllib.loads("".join(line[2:] or "\n" for line in match["content"].splitlines(keepends=True)))


SCRIPTS = [path for path in sorted(EXAMPLES.glob("*.py")) if BLOCK.search(path.read_text())]


def sources():
    """Every example's code, with a notebook's cells as one source each."""
    for path in EXAMPLES.glob("*.py"):
        yield pytest.param(path.read_text(), id=path.name)
    for path in NOTEBOOKS:
        for cell in json.loads(path.read_text())["cells"]:
            if cell["cell_type"] == "code":
                yield pytest.param("".join(cell["source"]), id=f"{path.name}:{cell['id']}")


def imports_of(source):
    """Modules, each with the names that are taken from it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, []) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module, [alias.name for alias in node.names]


@pytest.mark.parametrize("source", sources())
def test_imports_resolve(source, monkeypatch):
    monkeypatch.syspath_prepend(EXAMPLES)  # one script imports another
    for module, names in imports_of(source):
        found = importlib.import_module(module)
        assert [name for name in names if not hasattr(found, name)] == []


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.name)
def test_notebook_is_clean(path):
    notebook = nbformat.read(path, as_version=nbformat.NO_CONVERT)
    nbformat.validate(notebook)
    assert (notebook.nbformat, notebook.nbformat_minor) == (4, 5)
    assert set(notebook.metadata.kernelspec) == {"display_name", "language", "name"}
    assert notebook.metadata.kernelspec.name == "python3"
    for cell in notebook.cells:
        assert not cell.metadata
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
        else:
            for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", cell.source):
                assert (EXAMPLES / link).exists(), link


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_script_metadata(script):
    metadata = metadata_of(script)
    assert metadata["requires-python"] == PROJECT["requires-python"]
    (requirement,) = map(Requirement, metadata["dependencies"])
    assert requirement.name == PROJECT["name"]
    assert requirement.extras <= set(PROJECT["optional-dependencies"])
    declared = {Requirement(text).name.replace("-", "_") for text in PROJECT["dependencies"]}
    modules = {module.partition(".")[0] for module, _ in imports_of(script.read_text())} - sys.stdlib_module_names
    assert modules <= declared | {"trl_credit"}
    source = metadata["tool"]["uv"]["sources"]["trl-credit"]
    assert (EXAMPLES / source["path"]).resolve() == ROOT.resolve()


# Methods of one's own, as docs/methods.md and the examples write them

DOCUMENTED = "\n".join(re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "methods.md").read_text(), flags=re.DOTALL))
CUSTOM = {path.stem: path.read_text() for path in EXAMPLES.glob("custom_*.py")}


def methods_of(source: str) -> dict[str, CreditMethod]:
    """The methods that a source defines, by class name."""
    names = {"Rollout": trl_credit.Rollout, "__name__": "an_example"}  # the page's first block does not need it
    exec(source, names)
    classes = [node.name for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]
    return {name: names[name]() for name in classes}


def functions_of(source: str) -> dict[str, str]:
    """The code of each class's functions, by `Class.function`."""
    return {
        f"{node.name}.{function.name}": ast.dump(function)
        for node in ast.parse(source).body
        if isinstance(node, ast.ClassDef)
        for function in node.body
        if isinstance(function, ast.FunctionDef)
    }


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("source", [DOCUMENTED, *CUSTOM.values()], ids=["docs", *CUSTOM])
def test_a_method_of_ones_own_gives_credit(source, seed):
    for method in methods_of(source).values():
        inputs = make_inputs(method, seed, 6, 20)
        weights, advantages = credit(method, inputs)
        assert torch.isfinite(advantages).all()
        assert (advantages[~inputs.mask] == 0).all()
        spread = (advantages - inputs.advantages.unsqueeze(1))[inputs.mask]
        assert spread.abs().max() > 0.01
        if weights is not None:
            torch.testing.assert_close(weights.sum(-1), inputs.mask.sum(-1).float())


def test_the_page_shows_the_examples():
    shown, examples = functions_of(DOCUMENTED), {}
    for source in CUSTOM.values():
        examples |= functions_of(source)
    assert len(shown) == 4
    assert shown == {name: examples[name] for name in shown}


def test_the_baseline_of_the_example():
    """Against a loop."""
    method = methods_of(CUSTOM["custom_kinds"])["PlaceBaseline"]
    inputs = make_inputs(method, 3, 6, 9)
    rollout = make_rollout(3, inputs.mask)
    found = method.rollout_stage(rollout)["advantages"]
    for row, place in inputs.mask.nonzero().tolist():
        others = [
            rollout.rewards[i].item()
            for i in range(6)
            if rollout.groups[i] == rollout.groups[row] and rollout.mask[i, place] and not rollout.rewards[i].isnan()
        ]
        reward = rollout.rewards[row].item()
        expected = 0.0 if reward != reward else reward - sum(others) / len(others)
        assert found[row, place].item() == pytest.approx(expected, abs=1e-6)


def test_something_is_tested():
    assert len(CUSTOM) == 2
    assert NOTEBOOKS
    assert SCRIPTS
