"""What the machine tells."""

import pytest

from trl_credit.doctor import machine
from trl_credit.doctor.children import Answer


def test_nvidia():
    said = "580.95.05, NVIDIA H200, 143771, 512\n580.95.05, NVIDIA GB10, [N/A], [N/A]\n\nFailed to initialize\n"
    driver, cards = machine.read_nvidia(Answer(said))
    assert driver == "580.95.05"
    assert cards == (
        {"name": "NVIDIA H200", "gib": 140.4, "used_gib": 0.5},
        {"name": "NVIDIA GB10", "gib": None, "used_gib": None},
    )
    assert machine.read_nvidia(Answer(error="it has failed")) == (None, ())


def test_survey():
    here = machine.survey()
    assert here.cores >= 1
    assert here.memory_gib > 0
    assert here.disks["this folder"] > 0
    assert here.hub["token"] in (True, False)


def test_nvcc(tmp_path, monkeypatch):
    home = tmp_path / "cuda"
    (home / "bin").mkdir(parents=True)
    program = home / "bin" / "nvcc"
    program.write_text("#!/bin/sh\necho 'Cuda compilation tools, release 12.6, V12.6.20'\n")
    monkeypatch.setenv("CUDA_HOME", str(home))
    program.chmod(0o644)
    assert machine.nvcc_version() is None
    program.chmod(0o755)
    assert machine.nvcc_version() == "12.6"


def test_variables_are_told_and_secrets_are_not(monkeypatch):
    monkeypatch.setenv("NCCL_DEBUG", "INFO")
    monkeypatch.setenv("VLLM_API_KEY", "sesame")
    monkeypatch.setenv("HF_ENDPOINT", "https://user:sesame@mirror.example")
    monkeypatch.setenv("HF_TOKEN", "sesame")
    found = machine.variables()
    assert found["NCCL_DEBUG"] == "INFO"
    assert "mirror.example" in found["HF_ENDPOINT"]
    assert "sesame" not in str(found)


def test_a_hub_that_cannot_be_imported(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    assert "ImportError" in machine.hub_state()["error"] or "ModuleNotFoundError" in machine.hub_state()["error"]


@pytest.mark.parametrize("place", ["no/such/folder/here", "/proc/1/nothing"])
def test_free_space_of_a_folder_that_is_not_there_yet(place):
    assert machine._free(place) is not None
