"""The examples run."""

import json
import re
import runpy

import nbformat
import pytest
from helpers import ROOT
from nbclient import NotebookClient
from trl import GRPOConfig


EXAMPLES = ROOT / "examples"
SIZES = {"UPDATES": 2, "SEEDS": 1}


def html_of(cell) -> str:
    return "".join(output.data.get("text/html", "") for output in cell.outputs if "data" in output)


def test_notebook(tmp_path):
    notebook = nbformat.read(EXAMPLES / "from_trl.ipynb", as_version=4)
    cells = {cell.id: cell for cell in notebook.cells}
    for name, value in SIZES.items():
        cells["sizes"].source, count = re.subn(rf"(?m)^{name} = \d+", f"{name} = {value}", cells["sizes"].source)
        assert count == 1
    NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    assert "credit/effective_fraction" in html_of(cells["log-table"])
    credit = html_of(cells["score"])
    assert {"uniform: ", "gcpo: ", "dgpo: "} <= set(re.findall(r"(?:uniform|gcpo|dgpo): ", credit))
    assert "background-color" in credit
    for name in ("bars", "curves"):
        assert any("image/svg+xml" in output.get("data", {}) for output in cells[name].outputs)
    comparison = json.loads((tmp_path / "outputs/from_trl/compare/comparison.json").read_text())
    assert [method["label"] for method in comparison["methods"]] == ["uniform", "gcpo"]
    assert comparison["updates"] == SIZES["UPDATES"]
    assert "too few seeds" in html_of(cells["compare-train"])


@pytest.mark.parametrize(
    "name", ["drop_in", "grpo_and_distillation", "custom_method", "custom_kinds", "turns", "vision"]
)
def test_script(name, tmp_path, monkeypatch):
    def two_updates(self):
        self.max_steps, self.logging_steps = 2, 1
        post_init(self)

    post_init = GRPOConfig.__post_init__
    monkeypatch.setattr(GRPOConfig, "__post_init__", two_updates)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", [name])
    left = runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
    if "trainer" in left:
        assert left["trainer"].state.global_step == 2
    assert (tmp_path / "outputs" / name).is_dir()


def test_image_tokens(tmp_path, monkeypatch, capsys):
    words = ["--updates", "2", "--seeds", "1", "--pretraining_steps", "2", "--judge_steps", "20"]
    monkeypatch.setattr("sys.argv", ["image_tokens", *words, "--output", str(tmp_path)])
    runpy.run_path(str(EXAMPLES / "image_tokens.py"), run_name="__main__")
    assert {"uniform", "gcpo"} <= set(capsys.readouterr().out.split())
    assert (tmp_path / "credit.png").stat().st_size > 1000
