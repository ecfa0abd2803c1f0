"""The command: exit codes, JSON and the report."""

import dataclasses
import json

import pytest
from helpers import ROOT

from trl_credit.doctor import cli, facts, machine, packages, report
from trl_credit.doctor.children import Answer
from trl_credit.doctor.needs import Needs


TORCH = {
    "version": "2.13.0", "cuda": None, "hip": None, "gpus": [], "available": False, "said": [], "other": None,
    "cuda_home": None, "ninja": True,
}  # fmt: skip


@pytest.fixture
def here(monkeypatch):
    """This machine, whose torch and imports answer what a test says."""
    answers = {"torch_facts": Answer(TORCH), "deepspeed_ops": Answer({})}

    def ask(question, *arguments, seconds):
        return answers.get(question) or answers.get(arguments[0].partition(":")[0], Answer("1.0"))

    monkeypatch.setattr(cli, "collect", lambda needed=(): facts.collect(needed, ask))
    return answers


def run(capsys, *words):
    """Its exit code and what it prints."""
    code = 0
    try:
        cli.main(list(words))
    except SystemExit as error:
        code = error.code
    return code, capsys.readouterr()


def test_a_machine_without_a_gpu(here, capsys):
    code, said = run(capsys)
    assert code == 0
    assert "trl-credit" in said.out
    assert "cannot run" not in said.out


def test_json(here, capsys):
    code, said = run(capsys, "--json", "--needs", "gpu")
    found = json.loads(said.out)
    assert code == 1
    assert found["works"] is False
    assert found["needs"]["gpus"] == 1
    assert found["packages"]["trl"]["required"] is True
    assert found["imports"]["trl"] == "ok"
    assert found["torch"] == TORCH
    assert found["hub_reachable"] is None
    assert [problem["what"] for problem in found["problems"] if problem["needed"]] == ["There is no GPU"]


def test_a_recipe_that_runs_on_a_cpu(here, capsys, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    code, said = run(capsys, recipe)
    assert code == 0
    assert "Nothing was found that keeps" in said.out
    assert run(capsys, "--json", "--config", recipe)[0] == 0
    code, said = run(capsys, recipe, "--use_cpu", "false", "--bf16", "true")
    assert code == 1
    assert "There is no GPU" in said.out


def test_a_recipe_for_gpus(here, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    recipe = str(ROOT / "recipes" / "qwen2.5-7b" / "gcpo.yaml")
    code, said = run(capsys, recipe)
    assert code == 1
    assert "zero3.yaml" in said.out
    assert "There is no GPU" in said.out
    code, said = run(capsys, recipe, "--accelerate_config", "fsdp2", "--json")
    assert json.loads(said.out)["needs"]["packages"].keys() == {"vllm"}
    found = json.loads(run(capsys, recipe, "--num_processes", "2", "--json")[1].out)
    assert found["needs"]["gpus"] == 2
    assert "`--num_processes 2` starts 2 processes" in found["needs"]["gpus_why"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["no/such.yaml"], "no/such.yaml"),
        (["recipes/quickstart.yaml", "--use_vlm", "true"], "use_vllm"),
        (["recipes/quickstart.yaml", "--accelerate_config", "zero33"], "zero3"),
        (["--use_vllm", "true"], "name one first"),
        (["--needs", "gpus"], "gpu"),
        (["--needs", "gpu", "recipes/quickstart.yaml"], "doctor [RECIPE"),
        (["recipes/quickstart.yaml", "--num_processes", "0"], "at least 1"),
    ],
)
def test_mistakes(here, capsys, monkeypatch, words, message):
    monkeypatch.chdir(ROOT)
    code, said = run(capsys, *words)
    assert code == 2
    assert message in said.err


def test_the_hub(here, capsys, monkeypatch):
    state = {"offline": False, "address": "https://hub", "token": False, "cache": "/cache"}
    monkeypatch.setattr(machine, "hub_state", lambda: state)
    monkeypatch.setattr(cli.hub_, "reachable", lambda: "ConnectError: refused")
    code, said = run(capsys, "--hub")
    assert code == 0
    assert "the hub does not answer" in said.out
    recipe = str(ROOT / "recipes" / "qwen2.5-7b" / "gcpo.yaml")
    _, said = run(capsys, recipe, "--hub", "--json")
    assert json.loads(said.out)["problems"][0]["needed"]
    state["offline"] = True
    monkeypatch.setattr(cli.hub_, "reachable", lambda: 1 / 0)
    assert run(capsys, "--hub")[0] == 0  # it is not asked


def test_what_is_below_trl_is_asked_only_if_trl_fails(here):
    assert "transformers" not in cli.collect().imports
    here["trl"] = here["transformers"] = Answer(error="broken", causes=("ImportError: broken",))
    found = cli.collect()
    assert found.imports["transformers"].error == "broken"
    assert found.imports["peft"].error is None


def test_what_few_need_is_imported_only_if_it_is_asked_for(here, capsys):
    assert "matplotlib" not in cli.collect().imports
    here["deepspeed_ops"] = Answer({"cpu_adam": "can be compiled", "fused_adam": "not here"})
    assert cli.collect().ops == {}
    found = cli.collect({"deepspeed", "matplotlib"})
    assert {"deepspeed", "matplotlib"} <= found.imports.keys()
    assert (
        dict(report.lines(found, Needs(), [], None))["DeepSpeed ops"]
        == "can be compiled: cpu_adam; not here: fused_adam"
    )


def test_nvcc_is_that_of_torch(here, monkeypatch):
    asked = []
    monkeypatch.setattr(machine, "nvcc_version", lambda home=None: asked.append(home) or str(home))
    here["torch_facts"] = Answer(TORCH | {"cuda_home": "/usr/local/cuda"})
    assert cli.collect().machine.nvcc == "/usr/local/cuda"


def test_the_driver():
    def told(torch=TORCH, **changed):
        plain = dataclasses.replace(machine.survey(), driver=None, cards=(), driver_error=None)
        found = facts.Facts(dataclasses.replace(plain, **changed), packages.survey(), Answer(torch))
        return dict(report.lines(found, Needs(), [], None))["driver"]

    gpu = {"index": 0, "name": "H200", "gib": 1.0, "free_gib": 1.0, "capability": "9.0", "bf16": True, "error": None}
    assert told() == "no NVIDIA driver"
    assert told(TORCH | {"gpus": [gpu]}) == "not known (no nvidia-smi)"
    assert told(driver="580", cards=("H200",)) == "NVIDIA 580, 1 card"
    assert told(driver_error="version mismatch") == "nvidia-smi: version mismatch"


def test_one_recipe_at_a_time(here, capsys):
    code, said = run(capsys, str(ROOT / "recipes" / "quickstart.yaml"), "other.yaml")
    assert code == 2
    assert "other.yaml is one word too many" in said.err


def test_a_torch_that_does_not_start(here, capsys):
    here["torch_facts"] = Answer(error="the process was ended by SIGILL")
    code, said = run(capsys)
    assert code == 1
    assert "SIGILL" in said.out
    assert "trl-credit cannot run here: 1 thing to mend" in said.out


def test_text_that_steers_a_terminal(here, capsys):
    here["triton"] = Answer(error="ImportError: \x1b[31m[bold]x", causes=("ImportError: \x1b[31m[bold]x",))
    _, said = run(capsys)
    assert "\x1b[31m" not in said.out
    assert r"\x1b[31m[bold]x" in said.out


def test_lines_name_gpus():
    gpu = {
        "index": 0,
        "name": "H200",
        "gib": 139.0,
        "free_gib": 138.0,
        "capability": "9.0",
        "bf16": True,
        "error": None,
    }
    torch = Answer(TORCH | {"gpus": [gpu, {"index": 1, "error": "broken"}], "cuda": "13.0", "nccl": "2.29"})
    found = facts.Facts(dataclasses.replace(machine.survey(), driver="580", cards=("H200",)), packages.survey(), torch)
    lines = dict(report.lines(found, Needs(), [], None))
    assert lines["GPU 0"] == "H200, 139.0 GiB (138.0 free), compute capability 9.0, bfloat16"
    assert lines["GPU 1"] == "does not compute: broken"
    assert lines["torch"] == "2.13.0, built with CUDA 13.0, NCCL 2.29"


@pytest.mark.slow
def test_of_this_environment(capsys):
    """Nothing made up: children, packages and all."""
    code, said = run(capsys, "--json")
    found = json.loads(said.out)
    assert code == 0, found["problems"]
    assert found["imports"]["trl"] == "ok"
    assert found["torch"]["version"]
