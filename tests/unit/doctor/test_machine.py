"""What the machine tells."""

import os
import shutil

import huggingface_hub
import pytest

from trl_credit.doctor import machine


@pytest.fixture
def program(tmp_path, monkeypatch):
    """Writes a program, to a folder that alone is on the path."""
    (tmp_path / "bin").mkdir()
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))

    def write(name, script=""):
        path = tmp_path / "bin" / name
        path.write_text(f"#!/bin/sh\n{script}\n")
        path.chmod(0o755)
        return str(path)

    return write


def test_nvidia(program):
    assert machine.nvidia() == (None, (), None)
    program("nvidia-smi", "echo '580.95.05, NVIDIA H200'; echo '580.95.05, NVIDIA GB10'")
    assert machine.nvidia() == ("580.95.05", ("NVIDIA H200", "NVIDIA GB10"), None)
    program(
        "nvidia-smi", "echo 'Failed to initialize NVML: Driver/library version mismatch'; echo 'NVML 580.95'; exit 18"
    )
    complaint = "Failed to initialize NVML: Driver/library version mismatch NVML 580.95"
    assert machine.nvidia() == (None, (), complaint)
    assert machine.survey().driver_error == complaint


def test_survey(monkeypatch):
    monkeypatch.setattr(machine.os, "sched_getaffinity", lambda process: {0, 3})
    here = machine.survey()
    assert here.cores == 2
    assert 0 < here.memory_gib <= os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30 + 0.1
    assert abs(here.disks["this folder"] - shutil.disk_usage(".").free / 2**30) < 5
    assert here.hub["cache"] == huggingface_hub.constants.HF_HUB_CACHE


def test_the_c_compiler_is_one_that_triton_takes(program, monkeypatch):
    """It looks for `gcc` and `clang` only, and takes CC as one word."""
    monkeypatch.delenv("CC", raising=False)
    cc = program("cc")
    assert machine.survey().c_compiler is None
    clang = program("clang")
    assert machine.survey().c_compiler == clang
    gcc = program("gcc")
    assert machine.survey().c_compiler == gcc
    monkeypatch.setenv("CC", cc)
    assert machine.survey().c_compiler == cc
    monkeypatch.setenv("CC", "gcc -m64")
    assert machine.survey().c_compiler is None


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
    monkeypatch.delenv("CUDA_HOME")
    monkeypatch.setenv("PATH", "")
    assert machine.nvcc_version() is None
    assert machine.nvcc_version(str(home)) == "12.6"


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


def test_a_user_without_a_home(monkeypatch):
    """A container's numeric user: `expanduser` of pathlib raises."""
    monkeypatch.delenv("HOME", raising=False)
    monkeypatch.setattr("pwd.getpwuid", lambda number: {}["uid"])
    assert machine._free("~/cache") is not None
