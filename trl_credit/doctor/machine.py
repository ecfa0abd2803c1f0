"""The machine: compilers, CUDA, GPUs, memory, disks, the hub's cache and variables. Torch answers in a child process."""

import contextlib
import os
import platform
import re
import shutil
import sys
import sysconfig
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._util.text import redact, redact_url
from .children import run


GIB = 2**30
# Variables that change what a run does. Tokens are not among them
_VARIABLES = (
    "CUDA_VISIBLE_DEVICES", "CUDA_HOME", "CUDA_PATH", "LD_LIBRARY_PATH", "HF_HOME", "HF_HUB_CACHE", "HF_HUB_OFFLINE",
    "HF_DATASETS_CACHE", "HF_DATASETS_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_ENDPOINT", "ACCELERATE_USE_CPU",
    "OMP_NUM_THREADS",
    "PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF", "TORCH_EXTENSIONS_DIR", "TRITON_INTERPRET", "TRITON_CACHE_DIR", "CC",
    "CXX",
)  # fmt: skip
_FAMILIES = ("NCCL_", "VLLM_", "GLOO_")
_SECRETS = re.compile("TOKEN|KEY|SECRET|PASSWORD")


@dataclass(frozen=True)
class Machine:
    """What there is besides packages.

    Args:
        python: Version of Python.
        system: The operating system.
        cores: Cores that this process may use.
        memory_gib: Memory, or the container's limit; `None` if not known.
        compiler: The C++ compiler and its version, or `None`.
        c_compiler: Path of the C compiler that Triton takes, or `None`.
        headers: Whether Python's headers are installed.
        nvcc: Version of the CUDA compiler, or `None`.
        driver: Version of the NVIDIA driver, or `None`.
        cards: Names of the NVIDIA cards that the driver counts.
        driver_error: What `nvidia-smi` complains of, or `None`.
        shm_gib: Size of the shared memory (/dev/shm); `None` where there is none.
        disks: Free GiB by what is kept there.
        hub: The hub's cache: folder, offline, address, and whether there is a token.
        variables: Variables that are set.
    """

    python: str
    system: str
    cores: int
    memory_gib: float | None = None
    compiler: str | None = None
    c_compiler: str | None = None
    headers: bool = True
    nvcc: str | None = None
    driver: str | None = None
    cards: tuple[str, ...] = ()
    driver_error: str | None = None
    shm_gib: float | None = None
    disks: dict[str, float] = field(default_factory=dict)
    hub: dict[str, Any] = field(default_factory=dict)
    variables: dict[str, str] = field(default_factory=dict)


def survey() -> Machine:
    """Looks at this machine. What cannot be found out is left out."""
    driver, cards, driver_error = nvidia()
    hub = hub_state()
    return Machine(
        python=platform.python_version(),
        system=platform.platform(),
        cores=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1,
        memory_gib=memory_gib(),
        compiler=_compiler("CXX", "c++", "g++", "clang++"),
        c_compiler=_which("CC", "gcc", "clang"),
        headers=Path(sysconfig.get_paths()["include"], "Python.h").is_file(),
        nvcc=nvcc_version(),
        driver=driver,
        cards=cards,
        driver_error=driver_error,
        shm_gib=_size("/dev/shm"),
        disks={
            name: free
            for name, place in (("this folder", "."), ("the hub's cache", hub.get("cache")))
            if place is not None and (free := _free(place)) is not None
        },
        hub=hub,
        variables=variables(),
    )


def nvidia() -> tuple[str | None, tuple[str, ...], str | None]:
    """Version of the driver, names of the cards, and what is wrong with them, by `nvidia-smi`."""
    if shutil.which("nvidia-smi") is None:
        return None, (), None
    answer = run(["nvidia-smi", "--query-gpu=driver_version,name", "--format=csv,noheader"], 15)
    lines = [line.split(",", 1) for line in (answer.value or "").splitlines() if "," in line]
    return lines[0][0].strip() if lines else None, tuple(name.strip() for _, name in lines), answer.error


def nvcc_version(home: str | None = None) -> str | None:
    """The version of the CUDA toolkit's compiler, such as `13.0`.

    Args:
        home: The toolkit's folder; by default the one that variables name, or that of the first `nvcc` that is found.
    """
    home = home or os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    path = str(Path(home, "bin", "nvcc")) if home else shutil.which("nvcc")
    if path is None:
        return None
    found = re.search(r"release (\d+\.\d+)", run([path, "--version"], 15).value or "")
    return found[1] if found else None


def memory_gib() -> float | None:
    """Memory of the machine, or of its container if that has less."""
    sizes = []
    with contextlib.suppress(OSError, ValueError, AttributeError):  # Windows has no `sysconf`
        sizes.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    with contextlib.suppress(OSError, ValueError):  # "max" without a limit
        sizes.append(int(Path("/sys/fs/cgroup/memory.max").read_text()))
    return round(min(sizes) / GIB, 1) if sizes else None


def hub_state() -> dict[str, Any]:
    """The hub's cache and whether it may be asked. The token itself is not told."""
    try:
        from huggingface_hub import constants, get_token

        return {
            "cache": constants.HF_HUB_CACHE,
            "offline": bool(constants.HF_HUB_OFFLINE),
            "address": redact_url(constants.ENDPOINT),
            "token": get_token() is not None,
        }
    except Exception as error:
        return {"error": f"{type(error).__name__}: {error}"}


def variables() -> dict[str, str]:
    """The variables that matter, without secrets."""
    names = [*_VARIABLES, *(name for name in sorted(os.environ) if name.startswith(_FAMILIES))]
    return {name: redact(os.environ[name]) for name in names if name in os.environ and not _SECRETS.search(name)}


def is_linux() -> bool:
    return sys.platform == "linux"


def _which(variable: str, *names: str) -> str | None:
    """The program of a variable, or the first that is installed."""
    asked = os.environ.get(variable)
    return next(filter(None, map(shutil.which, names if asked is None else (asked,))), None)


def _compiler(variable: str, *names: str) -> str | None:
    path = _which(variable, *names)
    if path is None:
        return None
    lines = (run([path, "--version"], 15).value or "").splitlines()
    return lines[0] if lines else path


def _size(place: str) -> float | None:
    try:
        return round(shutil.disk_usage(place).total / GIB, 2)
    except OSError:
        return None


def _free(place: str) -> float | None:
    """Free space at a folder, or at the nearest one above that exists."""
    path = Path(os.path.expanduser(place)).absolute()
    for folder in (path, *path.parents):
        try:
            return round(shutil.disk_usage(folder).free / GIB, 1)
        except OSError:
            continue
    return None
