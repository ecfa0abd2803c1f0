"""What is wrong with packages: missing, of other versions, or broken."""

import re
from collections.abc import Iterator, Sequence

from . import machine as this_machine
from .children import Answer
from .facts import Facts
from .needs import Needs
from .packages import Package
from .problem import Problem, capitalized


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


def install(package: Package) -> str:
    """The command that installs a package."""
    if package.name == "flash-attn":
        return "pip install --no-build-isolation flash-attn, or set `attn_implementation: sdpa`"
    if package.extra:
        return f"pip install 'trl-credit[{package.extra}]'"
    return f"pip install '{package.name}{package.supported}'" if package.supported else f"pip install {package.name}"


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
    if package.name == "vllm" and not this_machine.is_linux():
        mend = "Linux (vLLM has no packages for other systems), or set `use_vllm: false`"
    elif package.name == "vllm":
        mend += ", or set `use_vllm: false` (slower)"
    elif package.name == "deepspeed":
        mend += ", or launch with `--accelerate_config fsdp2`"
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
    return f"{capitalized(text)}: it may not start." if text else ""


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
            why, mend = f"{capitalized(cause)}.", command.format(missing=missing, **filled)
            break
    who = names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
    used = [facts.packages[n].use for n in names if n in facts.packages and facts.packages[n].use]
    return Problem(
        f"{who} cannot be imported: {answer.error}",
        " ".join(filter(None, (why, f"Used for: {'; '.join(used)}." if used and len(used) == len(names) else ""))),
        mend,
        needed,
    )


RULES = (_packages, _conflicts, _imports)
