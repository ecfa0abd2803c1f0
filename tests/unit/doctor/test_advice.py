"""What is wrong, and what mends it, from facts that are made up."""

import dataclasses
import socket
import sys

import pytest

from trl_credit.doctor import advice, machine
from trl_credit.doctor.advice import problems
from trl_credit.doctor.children import Answer
from trl_credit.doctor.facts import Facts
from trl_credit.doctor.hub import CACHED, MISSING, PARTIAL, REMOTE, Place
from trl_credit.doctor.machine import Machine
from trl_credit.doctor.needs import NAMED, Needs
from trl_credit.doctor.packages import Package


H100 = {"index": 0, "name": "H100", "gib": 80.0, "free_gib": 79.0, "capability": "9.0", "bf16": True, "error": None}
CARD = "H100"
PIP = f"{sys.executable} -m pip"


def packages(**changed):
    found = {
        "trl": Package("trl", "1.16.0", ">=1.16,<1.17", required=True),
        "torch": Package("torch", "2.13.0", ">=2.8", required=True),
        "transformers": Package("transformers", "5.23.0", ">=5.20,<6", required=True),
        "vllm": Package("vllm", None, ">=0.22.0,<=0.31.0", extra="vllm", use="`use_vllm`"),
        "deepspeed": Package("deepspeed", None, ">=0.19,<1", extra="deepspeed", use="zero*.yaml"),
        "flash-attn": Package("flash-attn", None, use="attention"),
        "kernels": Package("kernels", None, use="kernels of the hub"),
        "triton": Package("triton", "3.7.1", use="the kernel behind `dgpo`"),
        "torchvision": Package("torchvision", None, use="images"),
        "wandb": Package("wandb", None, use="`report_to: wandb`"),
    }
    for name, change in changed.items():
        name = name.replace("_", "-")
        found[name] = dataclasses.replace(found[name], **change)
    return found


def torch_says(*gpus, **changed):
    found = {
        "version": "2.13.0", "cuda": "13.0", "hip": None, "gpus": list(gpus), "available": bool(gpus), "said": [],
        "other": None, "nccl": "2.29.7" if gpus else None, "architectures": ["sm_90"], "cuda_home": None, "ninja": True,
    }  # fmt: skip
    return Answer(found | changed)


def facts(torch=None, imports=None, found=None, **changed):
    machine = {
        "python": "3.11.7", "system": "Linux", "cores": 8,
        "compiler": "c++ 12", "c_compiler": "/usr/bin/cc", "shm_gib": 32.0,
        "disks": {"this folder": 100.0}, "hub": {"offline": False, "address": "https://hub"},
    }  # fmt: skip
    return Facts(Machine(**machine | changed), found or packages(), torch or torch_says(), imports or {})


@pytest.fixture(autouse=True)
def _linux(monkeypatch):
    monkeypatch.setattr(machine, "is_linux", lambda: True)


def the_one(found):
    assert len(found) == 1, found
    assert found[0].what
    assert found[0].mend
    return found[0]


def test_nothing_is_wrong():
    assert problems(facts(), Needs()) == []
    assert problems(facts(torch_says(H100)), NAMED["gpu"] + NAMED["bf16"]) == []


def test_a_package_that_is_missing():
    problem = the_one(problems(facts(found=packages(trl={"installed": None})), Needs()))
    assert problem.needed
    assert problem.mend == f"{PIP} install 'trl>=1.16,<1.17'"
    problem = the_one(problems(facts(), Needs("r", {"deepspeed": "zero3.yaml starts DeepSpeed"})))
    assert problem.needed
    assert problem.why == "zero3.yaml starts DeepSpeed."
    assert "trl-credit[deepspeed]" in problem.mend
    assert "--accelerate_config fsdp2" in problem.mend
    assert "sdpa" in the_one(problems(facts(), Needs("r", {"flash-attn": "it is set"}))).mend
    with_kernels = facts(found=packages(kernels={"installed": "0.18.2"}))
    assert problems(with_kernels, Needs("r", {"flash-attn": "it is set"})) == []
    assert the_one(problems(facts(), Needs("r", {"wandb": "it is set"}))).mend == f"{PIP} install wandb"


def test_an_environment_without_pip(monkeypatch):
    monkeypatch.setattr(advice, "find_spec", lambda name: None)
    monkeypatch.setattr(advice.sys, "executable", "/my folder/python")
    problem = the_one(problems(facts(), Needs("r", {"wandb": "it is set"})))
    assert problem.mend == "uv pip install --python '/my folder/python' wandb"


def test_vllm_elsewhere(monkeypatch):
    monkeypatch.setattr(machine, "is_linux", lambda: False)
    assert the_one(problems(facts(), NAMED["vllm"])).mend.startswith("Linux")


def test_a_version_out_of_range():
    found = packages(vllm={"installed": "0.35.0"})
    problem = the_one(problems(facts(found=found), Needs()))
    assert problem.what == "vllm 0.35.0 is installed; >=0.22.0,<=0.31.0 is supported"
    assert not problem.needed
    assert the_one(problems(facts(found=found), NAMED["vllm"])).needed
    assert not the_one(problems(facts(found=packages(trl={"installed": "1.17.0"})), Needs())).needed


def test_packages_that_do_not_go_together():
    found = packages(vllm={"installed": "0.30.0", "conflicts": ("torch==2.11.0, and 2.13.0 is installed",)})
    problem = the_one(problems(facts(found=found), Needs()))
    assert problem.what == "vllm 0.30.0 needs torch==2.11.0, and 2.13.0 is installed"
    assert problem.mend.startswith(f"{PIP} install --upgrade vllm 'torch==2.13.0'")
    assert "`use_vllm`: it may" in problem.why
    assert not problem.needed
    ok, broken = Answer("0.30.0"), Answer(error="ImportError: x", causes=("ImportError: x",))
    assert not the_one(
        problems(facts(found=found, imports={"vllm": ok}), NAMED["vllm"])
    ).needed  # it works all the same
    both = problems(facts(found=found, imports={"vllm": broken}), NAMED["vllm"])
    assert [problem.needed for problem in both] == [True, True]


def test_what_only_images_and_sound_need():
    found = packages(vllm={"installed": "0.30.0", "conflicts": ("torchaudio==2.11.0, which is not installed",)})
    ok, broken = Answer("0.30.0"), Answer(error="ImportError: x", causes=("ImportError: x",))
    assert problems(facts(found=found, imports={"vllm": ok}), NAMED["vllm"]) == []
    told = {problem.what for problem in problems(facts(found=found, imports={"vllm": broken}), NAMED["vllm"])}
    assert "vllm 0.30.0 needs torchaudio==2.11.0, which is not installed" in told


NMS = "RuntimeError: operator torchvision::nms does not exist"


def test_one_cause_is_one_problem():
    broken = Answer(error="...", causes=("ImportError: Failed to import trl", NMS))
    ok = Answer("1")
    found = problems(facts(imports={"trl": broken, "transformers": broken, "matplotlib": ok}), Needs())
    problem = the_one(found)
    assert problem.what.startswith("trl and transformers cannot be imported")
    assert "another torch" in problem.why
    assert "'torch==2.13.0'" in problem.mend
    assert problem.needed


@pytest.mark.parametrize(
    ("error", "mend"),
    [
        ("ImportError: flash_attn_2_cuda.so: undefined symbol: _ZN3c104cuda", "--no-build-isolation flash-attn"),
        ("ImportError: libcuda.so.1: cannot open shared object file", "--gpus all"),
        ("ImportError: libcudart.so.12: cannot open shared object file", "--no-cache-dir flash-attn"),
        ("ImportError: version `GLIBCXX_3.4.32' not found", "libstdcxx-ng"),
        ("MissingCUDAException: CUDA_HOME does not exist", "export CUDA_HOME"),
        ("ModuleNotFoundError: No module named 'einops.layers'", "pip install einops"),
        ("the process was ended by SIGILL", "pip install --force-reinstall flash-attn"),
        ("KeyError: 'x'", f"{PIP} install --force-reinstall flash-attn"),
    ],
)
def test_causes_that_are_known(error, mend):
    broken = Answer(error=error, causes=(error,) * ("Error:" in error or "Exception:" in error))
    problem = the_one(problems(facts(imports={"flash-attn": broken}), Needs()))
    assert mend in problem.mend
    assert "{" not in problem.mend
    assert not problem.needed


def test_torch_that_does_not_start():
    broken = Answer(error="OSError: libcudnn.so.9: cannot open", causes=("OSError: libcudnn.so.9: cannot open",))
    found = problems(facts(broken, {"trl": Answer(error="ImportError: torch")}), NAMED["gpu"])
    problem = the_one(found)  # all others follow from it
    assert problem.what.startswith("torch cannot be imported")
    assert "another torch" not in problem.why
    assert problem.needed


def test_a_slow_import_says_nothing():
    late = Answer(error="no answer after 120 s", late=True)
    problem = the_one(problems(facts(imports={"trl": late}), Needs()))
    assert problem.what == "trl could not be checked: no answer after 120 s"
    assert problem.mend == "python -X importtime -c 'import trl'"
    assert not problem.needed
    assert not the_one(problems(facts(torch=late), Needs())).needed
    assert the_one(problems(facts(torch=late), NAMED["gpu"])).needed  # nothing is known of a GPU


def test_a_source_tree_that_is_not_installed():
    found = {name: dataclasses.replace(package, required=False) for name, package in packages().items()}
    problem = the_one(problems(facts(found=found), Needs()))
    assert problem.needed
    assert problem.mend.startswith(f"{PIP} install -e .")


def test_no_gpu():
    assert problems(facts(), Needs()) == []
    problem = the_one(problems(facts(), NAMED["gpu"]))
    assert problem.needed
    assert problem.what == "There is no GPU"
    assert problem.mend == "a machine with a GPU"
    of_recipe = Needs("my.yaml", gpus=1, gpus_why="why", output_dir="outputs/x")
    words = ", or to try it on a CPU: --use_cpu true --bf16 false"
    assert the_one(problems(facts(), of_recipe)).mend == problem.mend + words
    launched = Needs(packages={"vllm": "`use_vllm` is set"}, launcher="zero3.yaml") + of_recipe
    words += " --use_vllm false --accelerate_config recipes/accelerate/ddp_cpu.yaml"
    assert words in "".join(each.mend for each in problems(facts(), launched))


def test_a_precision_that_deepspeed_does_not_take():
    problem = the_one(problems(facts(), Needs(clash="`bf16` is off, and zero3.yaml starts DeepSpeed with bf16")))
    assert problem.needed
    assert "ddp_cpu.yaml" in problem.mend
    assert problems(facts(torch_says(other="mps")), NAMED["gpu"]) == []


def test_fewer_gpus_than_processes():
    why = "zero3.yaml starts 8 processes"
    problem = the_one(problems(facts(torch_says(H100, H100 | {"index": 1})), Needs("r", gpus=8, gpus_why=why)))
    assert problem.what == "There are 2 of 8 GPUs"
    assert "--num_processes 2" in problem.mend
    assert "4 times" in problem.mend
    three = [H100 | {"index": place} for place in range(3)]
    assert "2.67 times" in the_one(problems(facts(torch_says(*three)), Needs("r", gpus=8, gpus_why=why))).mend
    vllm = Needs("r", gpus=1, gpus_why="vLLM runs beside the trainer")
    assert the_one(problems(facts(), vllm)).why == "vLLM runs beside the trainer."


def test_a_torch_without_cuda():
    problem = the_one(
        problems(facts(torch_says(cuda=None, version="2.13.0+cpu"), cards=(CARD,), driver="580"), NAMED["gpu"])
    )
    assert "built without CUDA" in problem.what
    assert "'torch==2.13.0'" in problem.mend
    assert problem.needed


def test_hidden_gpus():
    found = facts(torch_says(), cards=(CARD,), driver="580", variables={"CUDA_VISIBLE_DEVICES": ""})
    assert the_one(problems(found, Needs())).mend == "unset CUDA_VISIBLE_DEVICES"


def test_an_old_driver():
    said = "CUDA initialization: The NVIDIA driver on your system is too old"
    problem = the_one(problems(facts(torch_says(said=[said]), cards=(CARD,) * 2, driver="470"), NAMED["gpu"]))
    assert said in problem.what
    assert "2 NVIDIA cards (driver 470)" in problem.what
    assert "CUDA 13.0" in problem.why
    assert problem.needed


@pytest.mark.parametrize(
    ("complaint", "mend"),
    [("Failed to initialize NVML: Driver/library version mismatch", "reboot"),
     ("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver", "--gpus all"),
     ("CUDA initialization: The NVIDIA driver on your system is too old", "update the driver")],
)  # fmt: skip
def test_what_the_driver_complains_of(complaint, mend):
    """Of nvidia-smi or of torch, where no card is counted."""
    for found in (facts(driver_error=complaint), facts(torch_says(said=[complaint]))):
        assert not the_one(problems(found, Needs())).needed
        problem = the_one(problems(found, NAMED["gpu"]))
        assert problem.what == f"torch cannot use the GPU: {complaint}"
        assert mend in problem.mend
        assert problem.needed
    assert problems(facts(torch_says(H100), driver_error=complaint), NAMED["gpu"]) == []  # it works all the same
    without = facts(torch_says(cuda=None), driver_error=complaint)
    assert the_one(problems(without, NAMED["gpu"])).what == "There is no GPU"


def test_a_gpu_that_does_not_compute():
    broken = {"index": 1, "name": "B200", "error": "RuntimeError: no kernel image is available"}
    found = facts(torch_says(H100, broken))
    assert not the_one(problems(found, NAMED["gpu"])).needed  # the other one does
    wrong, few = problems(found, Needs("r", gpus=2, gpus_why="it starts two"))
    assert "sm_90" in wrong.why
    assert wrong.needed
    assert few.what == "There is 1 of 2 GPUs"


def test_a_gpu_in_use_and_one_without_bfloat16():
    busy = the_one(problems(facts(torch_says(H100 | {"free_gib": 12.0})), NAMED["gpu"]))
    assert "12.0 of 80.0 GiB" in busy.what
    assert not busy.needed
    t4 = H100 | {"name": "T4", "bf16": False, "capability": "7.5"}
    assert problems(facts(torch_says(t4)), NAMED["gpu"]) == []
    assert "--fp16 true" in the_one(problems(facts(torch_says(t4)), NAMED["bf16"])).mend
    assert the_one(problems(facts(torch_says(t4)), NAMED["bf16"])).needed
    assert not the_one(problems(facts(torch_says(t4)), Needs("r", gpus=1, gpus_why="x", bf16=True))).needed  # emulated


def test_communication():
    two = (H100, H100 | {"index": 1})
    problem = the_one(problems(facts(torch_says(*two, nccl=None)), Needs("r", gpus=2, gpus_why="x")))
    assert "NCCL" in problem.what
    assert problem.needed
    assert "--shm-size" in the_one(problems(facts(torch_says(*two), shm_gib=0.06), Needs())).mend
    assert problems(facts(torch_says(H100), shm_gib=0.06), Needs()) == []


def test_compilers():
    found = facts(torch_says(H100), found=packages(vllm={"installed": "0.30.0"}), c_compiler=None)
    assert not the_one(problems(found, Needs())).needed
    assert the_one(problems(found, NAMED["vllm"])).needed
    assert the_one(problems(found, NAMED["gpu"])).needed  # TRL's loss is a kernel of Triton
    without = dataclasses.replace(found, packages=packages(triton={"installed": None}))
    assert not the_one(problems(without, NAMED["gpu"])).needed
    assert the_one(problems(facts(torch_says(H100), headers=False), NAMED["gpu"])).needed
    assert "python3.11-dev" in the_one(problems(facts(torch_says(H100), headers=False), Needs())).mend
    assert problems(facts(c_compiler=None), Needs()) == []  # nothing is compiled without a GPU
    offload = Needs("r", compiles="DeepSpeed's CPU optimizer")
    assert problems(facts(nvcc="13.1"), offload) == []
    assert "cuda-13.0" in the_one(problems(facts(nvcc="12.6"), offload)).mend
    assert the_one(problems(facts(compiler=None), offload)).needed
    assert the_one(problems(facts(torch_says(ninja=False)), offload)).mend == f"{PIP} install ninja"


def test_variables_and_disks():
    found = facts(torch_says(H100), variables={"TRITON_INTERPRET": "1", "ACCELERATE_USE_CPU": "true"})
    assert {problem.mend for problem in problems(found, Needs())} == {
        "unset TRITON_INTERPRET",
        "unset ACCELERATE_USE_CPU",
    }
    assert "1.5 GiB" in the_one(problems(facts(disks={"this folder": 1.5}), Needs())).what


def test_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").touch()
    (tmp_path / "taken").touch()
    assert problems(facts(), Needs("r", code=(("reward_funcs", "mine.py"),), output_dir="out")) == []
    assert the_one(problems(facts(), Needs("r", code=(("reward_funcs", "other.py"),)))).needed
    assert "it is a file" in the_one(problems(facts(), Needs("r", output_dir="taken"))).what


def test_a_server():
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        port = listening.getsockname()[1]
        listening.listen()
        assert problems(facts(), Needs("r", server=f"http://127.0.0.1:{port}")) == []
    problem = the_one(problems(facts(), Needs("r", server=f"http://127.0.0.1:{port}")))
    assert f"--port {port}" in problem.mend
    assert '{"backend": "nccl"}' in problem.mend
    assert not problem.needed  # it may be started later


def test_models_and_data():
    offline = facts(hub={"offline": True})

    def of(state, told="", found=None, kind="model"):
        return problems(found or facts(), Needs("r"), [Place("model_name_or_path", "org/model", state, kind, told)])

    assert of(CACHED) == of(REMOTE) == of(CACHED, found=offline) == []
    for state in (REMOTE, PARTIAL):
        assert the_one(of(state, found=offline)).needed
    assert the_one(of(REMOTE, found=offline, kind="dataset")).mend.endswith("--repo-type dataset")
    only_data = facts(variables={"HF_DATASETS_OFFLINE": "1"})
    assert of(REMOTE, found=only_data) == []
    assert the_one(of(REMOTE, found=only_data, kind="dataset")).needed
    assert of(REMOTE, found=facts(hub={"offline": True}, variables={"HF_DATASETS_OFFLINE": "0"}), kind="dataset") == []
    assert the_one(of(MISSING)).needed
    assert "hf auth login" in the_one(of(REMOTE, "GatedRepoError: 403 Client Error")).mend
    assert "network" in the_one(of(REMOTE, "ConnectError: refused")).mend


def test_what_stands_in_the_way_comes_first():
    found = problems(facts(disks={"this folder": 0.5}), NAMED["gpu"] + NAMED["vllm"])
    assert [problem.needed for problem in found] == [True, True, False]
