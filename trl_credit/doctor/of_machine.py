"""What is wrong with the machine: GPUs, compilers, disks and variables."""

from collections.abc import Iterator

from .._util.values import is_true
from . import machine as this_machine
from .facts import Facts
from .needs import Needs
from .problem import Problem, capitalized


def _gpus(facts: Facts, needs: Needs) -> Iterator[Problem]:
    torch, machine = facts.torch.value, facts.machine
    if torch is None:
        return
    found, asked = len(facts.gpus), needs.gpus > 0
    for gpu in torch["gpus"]:
        if gpu["error"] is not None:
            yield Problem(
                f"GPU {gpu['index']} ({gpu.get('name', 'unknown')}) does not compute: {gpu['error']}",
                "It is counted, but every kernel on it fails."
                + (
                    f" This torch has kernels for {', '.join(torch['architectures'])}."
                    if torch.get("architectures")
                    else ""
                ),
                "pip install --upgrade torch   (no kernel image), or nvidia-smi   (in use by others, or broken)",
                needed=asked and found < needs.gpus,
            )
        elif gpu["free_gib"] < 0.8 * gpu["gib"]:
            yield Problem(
                f"GPU {gpu['index']} has {gpu['free_gib']} of {gpu['gib']} GiB free",
                "Other processes use it, and recipes count on all of it.",
                f"nvidia-smi   (shows them), or leave it out by CUDA_VISIBLE_DEVICES (it is number {gpu['index']})",
            )
    hidden = machine.variables.get("CUDA_VISIBLE_DEVICES")
    complaint = machine.driver_error or next(iter(torch["said"]), None)
    unusable = bool(torch["cuda"]) and not torch["available"] and complaint is not None
    if not machine.cards and unusable:
        yield Problem(f"torch cannot use the GPU: {complaint}", "", _driver_mend(complaint), asked)
    if machine.cards and not torch["available"]:
        cards = f"{len(machine.cards)} NVIDIA card{'s' * (len(machine.cards) > 1)} (driver {machine.driver})"
        if torch["cuda"] is None and torch["hip"] is None:
            version = torch["version"].partition("+")[0]
            yield Problem(
                f"torch {torch['version']} is built without CUDA, and there is {cards}",
                "Everything runs on the CPU.",
                f"pip install --force-reinstall 'torch=={version}'   (from the package index; or a CUDA build, by the "
                "command of pytorch.org/get-started)",
                asked,
            )
        elif hidden is not None and hidden.strip() in ("", "-1"):
            yield Problem(
                f"CUDA_VISIBLE_DEVICES={hidden!r} hides {cards}",
                "Torch sees no GPU.",
                "unset CUDA_VISIBLE_DEVICES",
                asked,
            )
        else:
            yield Problem(
                f"torch cannot use {cards}" + (f": {complaint}" if complaint else ""),
                f"This torch is built for CUDA {torch['cuda']}; the driver must be new enough for it.",
                _driver_mend(complaint or "too old"),
                asked,
            )
    usable = found or int(torch["other"] is not None)
    if usable < needs.gpus and not unusable and not (machine.cards and not torch["available"]):
        yield _too_few(usable, needs)
    without = [gpu for gpu in facts.gpus if not gpu["bf16"]]
    if needs.bf16 and without:
        yield Problem(
            f"{without[0]['name']} (compute capability {without[0]['capability']}) has no bfloat16",
            "Torch emulates it, several times slower.",
            "--bf16 false --fp16 true, or --bf16 false",
            needed="bf16" in needs.named,
        )


def _driver_mend(complaint: str) -> str:
    if "mismatch" in complaint:  # the driver was updated, and the old one still runs
        return "reboot, or: sudo rmmod nvidia_uvm nvidia_drm nvidia_modeset nvidia && sudo modprobe nvidia"
    if "too old" in complaint:
        return "update the driver, or install a build for an older CUDA, by the command of pytorch.org/get-started"
    return "nvidia-smi   (until it shows the card: install or load the driver), or in a container: docker run --gpus all ..."


def _too_few(usable: int, needs: Needs) -> Problem:
    what = "There is no GPU" if usable == 0 else f"There {'is' if usable == 1 else 'are'} {usable} of {needs.gpus} GPUs"
    if usable == 0:
        mend = "a machine with a GPU"
        if needs.output_dir is not None:  # a recipe
            mend += ", or to try it on a CPU: --use_cpu true --bf16 false"
            mend += " --use_vllm false" * ("vllm" in needs.packages)
            mend += " --accelerate_config recipes/accelerate/ddp_cpu.yaml" * (needs.launcher is not None)
    else:
        times = f"{needs.gpus / usable:.2f}".rstrip("0").rstrip(".")
        mend = (
            f"--num_processes {usable}   (of the launcher and of doctor; {times} times the gradient_accumulation_steps)"
        )
    return Problem(what, f"{capitalized(needs.gpus_why)}.", mend, True)


def _communication(facts: Facts, needs: Needs) -> Iterator[Problem]:
    torch = facts.torch.value or {}
    several = needs.gpus > 1 or needs.server is not None
    if several and facts.gpus and not torch.get("nccl") and not torch.get("hip"):
        yield Problem(
            "this torch has no NCCL",
            "GPUs cannot exchange gradients or weights."
            if needs.gpus > 1
            else "The vLLM server gets weights through it.",
            "pip install --force-reinstall torch   (Linux builds for CUDA have it)",
            True,
        )
    shm = facts.machine.shm_gib
    if shm is not None and shm < 1 and (several or len(facts.gpus) > 1 or (facts.gpus and facts.installed("vllm"))):
        yield Problem(
            f"/dev/shm has {shm} GiB",
            "NCCL, vLLM and data loaders pass data through it; with too little they end with 'Bus error'.",
            "docker run --shm-size=16g ...   (or --ipc=host)",
        )


def _compilers(facts: Facts, needs: Needs) -> Iterator[Problem]:
    machine, torch = facts.machine, facts.torch.value or {}
    needed = "vllm" in needs.packages or (needs.gpus > 0 and facts.installed("triton"))
    if facts.gpus and this_machine.is_linux():
        use = "Triton compiles its launcher with it: TRL's loss, the kernel behind `dgpo`, vLLM and torch.compile need it."
        if machine.c_compiler is None:
            yield Problem(
                "there is no C compiler", use, "apt-get install -y gcc, or set CC to the one there is", needed
            )
        elif not machine.headers:
            version = ".".join(machine.python.split(".")[:2])
            yield Problem("Python's headers are missing", use, f"apt-get install -y python{version}-dev", needed)
    if needs.compiles is None:
        return
    if machine.compiler is None:
        yield Problem(
            "there is no C++ compiler", f"{needs.compiles} is compiled.", "apt-get install -y build-essential", True
        )
    if torch.get("ninja") is False:
        yield Problem("ninja is missing", f"{needs.compiles} is compiled with it.", "pip install ninja", True)
    if machine.nvcc and torch.get("cuda") and machine.nvcc.partition(".")[0] != torch["cuda"].partition(".")[0]:
        yield Problem(
            f"nvcc is of CUDA {machine.nvcc}, torch of {torch['cuda']}",
            f"{needs.compiles} is compiled, and DeepSpeed refuses to with another CUDA.",
            f"export CUDA_HOME=/usr/local/cuda-{torch['cuda']}   (or DS_SKIP_CUDA_CHECK=1)",
            True,
        )


def _disks(facts: Facts, needs: Needs) -> Iterator[Problem]:
    for name, free in facts.machine.disks.items():
        if free < 2:
            yield Problem(
                f"{free} GiB are free for {name}",
                "Checkpoints and downloads end with an error, some time later.",
                "free some, or move it: --output_dir, or HF_HOME for the cache",
            )


def _variables(facts: Facts, needs: Needs) -> Iterator[Problem]:
    found = facts.machine.variables
    if is_true(found.get("TRITON_INTERPRET")) and facts.gpus:
        yield Problem(
            "TRITON_INTERPRET is set",
            "Triton runs its kernels in Python, thousands of times slower.",
            "unset TRITON_INTERPRET",
        )
    if is_true(found.get("ACCELERATE_USE_CPU")) and facts.gpus:
        yield Problem(
            "ACCELERATE_USE_CPU is set", "Training does not use the GPU.", "unset ACCELERATE_USE_CPU", needs.gpus > 0
        )


RULES = (_gpus, _communication, _compilers, _disks, _variables)
