"""From facts and needs to problems: what is wrong, why it matters, and the command that mends it."""

import os
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

from .._util.values import is_true
from .children import Answer
from .facts import Facts
from .hub import MISSING, Place, answers
from .machine import is_linux
from .needs import Needs
from .packages import Package


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Args:
        what: What, in one line.
        why: Why it matters.
        mend: The command that mends it, or what else to do.
        needed: Whether something that was asked for cannot work because of it.
    """

    what: str
    why: str
    mend: str
    needed: bool = False


# Errors of imports that many have met: what is behind them, and what mends them. `{name}` is the package
_KNOWN = (
    (
        r"torchvision::nms|torchvision.*(undefined symbol|does not exist)|partially initialized module 'torchvision'",
        "torchvision was built for another torch, and transformers imports it",
        "pip uninstall torchvision torchaudio torchcodec   (text models need none), or: pip install --force-reinstall "
        "torchvision 'torch=={torch}'",
    ),
    (
        r"undefined symbol|DLL load failed|symbol not found",
        "it was compiled for another torch",
        "pip install --force-reinstall --no-deps --no-cache-dir --no-build-isolation {name}",
    ),
    (
        r"libcuda\.so",
        "there is no NVIDIA driver, or the container does not see it",
        "docker run --gpus all ...   (in a container), or install the driver",
    ),
    (
        r"lib(cudart|cublas|cudnn|nccl|cusparse|nvrtc)[\w-]*\.so",
        "the CUDA libraries that it was compiled for are not there",
        "pip install --force-reinstall --no-cache-dir {name}",
    ),
    (
        r"GLIBC(XX)?_",
        "it was compiled for a newer system than this",
        "a newer container or system, or: conda install -c conda-forge libstdcxx-ng",
    ),
    (r"CUDA_HOME", "the CUDA toolkit is not where it looks", "export CUDA_HOME=/usr/local/cuda"),
    (
        r"numpy\.(dtype size changed|core\.multiarray failed)|compiled using NumPy 1",
        "it was compiled for another NumPy",
        "pip install --force-reinstall --no-cache-dir {name}",
    ),
    (
        r"SIG(ILL|SEGV|ABRT|BUS)",
        "its compiled part does not run on this machine",
        "pip install --force-reinstall {name}",
    ),
    (r"No module named '([\w.]+)'", "a package that it needs is missing", "pip install {missing}"),
)
_SERVE = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve {model} --port {port} --tensor-parallel-size GPUS --max-model-len TOKENS "
    '--weight-transfer-config \'{{"backend": "nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)


def problems(facts: Facts, needs: Needs, places: Sequence[Place] = ()) -> list[Problem]:
    """Everything that is wrong, what stands in the way first.

    Args:
        facts: The environment.
        needs: What was asked for.
        places: Where its models and data are.
    """
    found = [problem for rule in _RULES for problem in rule(facts, needs)]
    found += [problem for place in places for problem in _place(place, facts)]
    found = [replace(problem, mend=_of_this_python(problem.mend)) for problem in found]
    return sorted(found, key=lambda problem: not problem.needed)


def _of_this_python(mend: str) -> str:
    """A command of `pip` as one that installs into this environment, whatever is on the path."""
    python = shlex.quote(sys.executable)
    if find_spec("pip") is not None:
        return re.sub(r"\bpip (install|uninstall)\b", lambda match: f"{python} -m {match[0]}", mend)
    return re.sub(r"\bpip (install|uninstall)\b", lambda match: f"uv {match[0]} --python {python}", mend)


def install(package: Package) -> str:
    """The command that installs a package."""
    if package.name == "flash-attn":
        return "pip install --no-build-isolation flash-attn, or set `attn_implementation: sdpa`"
    if package.extra:
        return f"pip install 'trl-credit[{package.extra}]'"
    return f"pip install '{package.name}{package.supported}'" if package.supported else f"pip install {package.name}"


def _capitalized(text: str) -> str:
    """The text as the start of a sentence; paths, code and names such as vLLM stay as they are."""
    return text if re.match(r"\S*[/A-Z]", text) else text[0].upper() + text[1:]


def _packages(facts: Facts, needs: Needs) -> Iterator[Problem]:
    if not any(package.required for package in facts.packages.values()):
        yield Problem(
            "trl-credit is not installed",
            "What it requires stands in its metadata, so nothing is known of that.",
            "pip install -e .   (in the source tree)",
            True,
        )
    for name, package in facts.packages.items():
        asked = needs.packages.get(name)
        if package.installed is None:
            if package.required:
                yield Problem(
                    f"{name} is not installed", "trl-credit does not work without it.", install(package), True
                )
            elif name == "flash-attn" and facts.installed("kernels"):
                continue  # transformers takes the hub's
            elif asked:
                yield _missing(package, asked)
        elif not package.fits:
            yield Problem(
                f"{name} {package.installed} is installed; {package.supported} is supported",
                f"{asked or package.use or 'trl-credit leans on what moves between releases'}.".replace("..", "."),
                install(package),
                bool(asked),
            )


def _missing(package: Package, asked: str) -> Problem:
    mend = install(package)
    if package.name == "vllm" and not is_linux():
        mend = "Linux (vLLM has no packages for other systems), or set `use_vllm: false`"
    elif package.name == "vllm":
        mend += ", or set `use_vllm: false` (slower)"
    elif package.name == "deepspeed":
        mend += ", or launch with recipes/accelerate/fsdp2.yaml"
    return Problem(f"{package.name} is not installed", f"{asked}.", mend, True)


def _conflicts(facts: Facts, needs: Needs) -> Iterator[Problem]:
    for name, package in facts.packages.items():
        broken = name in facts.imports and facts.imports[name].error is not None and not facts.imports[name].late
        for conflict in package.conflicts:
            if not broken and re.match("torch(vision|audio).* not installed", conflict):
                continue  # needed for images and sound alone
            other = re.match(r"[\w.-]+?(?=[=<>!~]|,|$)", conflict)[0]
            beside = facts.packages[other].installed if other in facts.packages else None
            held = f" '{other}=={beside.partition('+')[0]}'" if beside else f" {other}"
            yield Problem(
                f"{name} {package.installed} needs {conflict}",
                _use(package, needs) or "They were not built for each other: imports may fail, or results be wrong.",
                f"pip install --upgrade {name}{held}   (versions that go together)",
                needed=broken and name in needs.packages,
            )


def _use(package: Package, needs: Needs) -> str:
    text = needs.packages.get(package.name) or package.use
    return f"{_capitalized(text)}: it may not start." if text else ""


def _imports(facts: Facts, needs: Needs) -> Iterator[Problem]:
    """One problem for each cause: what breaks torch or transformers breaks all that import them."""
    if facts.torch.late:
        yield _late("torch", facts.torch, needs.gpus > 0)
    elif facts.torch.error is not None and facts.installed("torch"):
        yield _broken("torch", ["torch"], facts.torch, facts, True)
        return
    causes: dict[str, list[str]] = {}
    for name, answer in facts.imports.items():
        if answer.late:
            yield _late(name, answer, False)
        elif answer.error is not None:
            causes.setdefault(answer.causes[-1] if answer.causes else f"{name}: {answer.error}", []).append(name)
    for names in causes.values():
        needed = any(facts.packages[name].required or name in needs.packages for name in names)
        yield _broken(names[0], names, facts.imports[names[0]], facts, needed)


def _late(name: str, answer: Answer, needed: bool) -> Problem:
    return Problem(
        f"{name} could not be checked: {answer.error}",
        "Its import is slow, or waits for something: a driver, a disk or a lock.",
        f"python -X importtime -c 'import {name.replace('-', '_')}'",
        needed,
    )


def _broken(name: str, names: Sequence[str], answer: Answer, facts: Facts, needed: bool) -> Problem:
    text = " ".join((answer.error or "", *answer.causes))
    torch = facts.packages["torch"].installed if facts.installed("torch") else None
    filled = {"name": name, "torch": (torch or "").partition("+")[0]}
    why, mend = "", f"pip install --force-reinstall {name}"
    for pattern, cause, command in _KNOWN:
        if match := re.search(pattern, text):
            missing = match[1].partition(".")[0].replace("_", "-") if match.lastindex and "{missing}" in command else ""
            why, mend = f"{_capitalized(cause)}.", command.format(missing=missing, **filled)
            break
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    used = [facts.packages[n].use for n in names if n in facts.packages and facts.packages[n].use]
    return Problem(
        f"{who} cannot be imported: {answer.error}",
        " ".join(filter(None, (why, f"Used for: {'; '.join(used)}." if used and len(used) == len(names) else ""))),
        mend,
        needed,
    )


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
    return Problem(what, f"{_capitalized(needs.gpus_why)}.", mend, True)


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
    if facts.gpus and is_linux():
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


def _files(facts: Facts, needs: Needs) -> Iterator[Problem]:
    for name, path in needs.code:
        if not os.path.isfile(os.path.expanduser(path)):
            yield Problem(
                f"`{name}`: there is no file {path!r}",
                f"Looked from {Path.cwd()}.",
                "correct the path, or change the folder",
                True,
            )
    if needs.output_dir is not None:
        try:
            from .._util.settings import check_output_dir

            check_output_dir(needs.output_dir)
        except ValueError as error:
            yield Problem(str(error), "Checkpoints go there.", "--output_dir FOLDER", True)
        except ImportError:  # pydantic is broken, which `_imports` tells
            return
    if needs.server is not None and not answers(needs.server):
        port = re.search(r":(\d+)$", needs.server)
        yield Problem(
            f"no vLLM server answers at {needs.server}",
            "Start it before the trainer, which waits for it (`vllm_server_timeout`).",
            _SERVE.format(port=port[1] if port else 8000, model=dict(needs.models).get("model_name_or_path", "MODEL")),
        )
    if needs.clash is not None:
        yield Problem(
            needs.clash,
            "transformers refuses the difference.",
            "--bf16 true, or on a CPU: --accelerate_config recipes/accelerate/ddp_cpu.yaml",
            True,
        )


def _place(place: Place, facts: Facts) -> Iterator[Problem]:
    hub = facts.machine.hub
    what = f"`{place.field}`: {place.name!r}"
    offline = hub.get("offline")
    if place.kind == "dataset" and (said := facts.machine.variables.get("HF_DATASETS_OFFLINE")) is not None:
        offline = is_true(said)  # in the place of the hub's
    if place.state == MISSING:
        yield Problem(
            f"{what} is not there", f"Looked from {Path.cwd()}.", "correct the path, or change the folder", True
        )
    elif place.on_hub and offline:
        command = f"HF_HUB_OFFLINE=0 hf download {place.name}" + " --repo-type dataset" * (place.kind == "dataset")
        yield Problem(f"{what} is {place.state}", "The hub is switched off (HF_HUB_OFFLINE).", command, True)
    elif place.on_hub and place.told:
        refused = re.search("Gated|401|403|Unauthorized", place.told)
        mend = (
            f"hf auth login, and accept the terms at {hub.get('address', 'the hub')}/{place.name}"
            if refused
            else ("check the name and the network (HTTPS_PROXY, HF_ENDPOINT)")
        )
        yield Problem(f"{what} is {place.state}, and the hub does not give it", f"{place.told}.", mend, True)


_RULES = (_packages, _conflicts, _imports, _gpus, _communication, _compilers, _disks, _variables, _files)
