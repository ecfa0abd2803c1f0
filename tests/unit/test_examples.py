"""The example files: the notebook is clean, imports exist, and `uv run` finds the dependencies."""

import ast
import importlib
import json
import re
import tomllib

import nbformat
import pytest
from helpers import ROOT
from packaging.requirements import Requirement


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
    assert {module.partition(".")[0] for module, _ in imports_of(script.read_text())} <= declared | {"trl_credit"}
    source = metadata["tool"]["uv"]["sources"]["trl-credit"]
    assert (EXAMPLES / source["path"]).resolve() == ROOT.resolve()


def test_something_is_tested():
    assert NOTEBOOKS
    assert SCRIPTS
