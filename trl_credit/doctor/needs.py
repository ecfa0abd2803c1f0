"""What a recipe asks of a machine: packages, GPUs, files and models. Reads fields as written."""

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from .._util.text import nearest
from .._util.values import is_false, is_true, mapping_of
from .._util.words import with_file_named
from .._util.yaml import read_mapping
from ..methods.spec import read_spec
from ..recipe.early import check_early, precision_clash, words_of


# Fields whose truth asks for a package, and values of fields that do
_SWITCHES = {
    "load_in_4bit": "bitsandbytes",
    "load_in_8bit": "bitsandbytes",
    "use_liger_kernel": "liger-kernel",
    "use_kernels": "kernels",
    "use_vllm": "vllm",
}
_VALUES = {
    ("attn_implementation", "flash_attention_2"): "flash-attn",
    ("report_to", "wandb"): "wandb",
    ("report_to", "trackio"): "trackio",
    ("report_to", "tensorboard"): "tensorboard",
    ("trainer", "diffusion"): "diffusers",
    ("dataset_name", "trl_credit:digits"): "diffusers",
}
_DATA_FIELDS = ("dataset_name", "eval_dataset_name")
_DATA_FILES = (".json", ".jsonl", ".parquet", ".csv", ".tsv", ".gz")
_PORT = 8000


@dataclass(frozen=True)
class Needs:
    """What must be there.

    Args:
        of: What needs it: a recipe's path, or the option.
        packages: Packages by name, each with the reason.
        gpus: GPUs on this machine; 0 for none.
        gpus_why: Why so many.
        bf16: Whether they must compute in bfloat16.
        compiles: What must be compiled with the CUDA toolkit, or `None`.
        models: Folders or hub ids of models, each with its field.
        data: Folders, files or hub ids of data, each with its field.
        code: Files of code, each with its field.
        server: Address of the vLLM server that the trainer asks, or `None`.
        output_dir: Folder that is written to, or `None`.
        launcher: The launcher's configuration file, or `None`.
        clash: What in the recipe and the launcher's file does not go together, or `None`.
        named: Words after `--needs`: asked for themselves, not as something that has a substitute.
    """

    of: str = ""
    packages: dict[str, str] = field(default_factory=dict)
    gpus: int = 0
    gpus_why: str = ""
    bf16: bool = False
    compiles: str | None = None
    models: tuple[tuple[str, str], ...] = ()
    data: tuple[tuple[str, str], ...] = ()
    code: tuple[tuple[str, str], ...] = ()
    server: str | None = None
    output_dir: str | None = None
    launcher: str | None = None
    clash: str | None = None
    named: tuple[str, ...] = ()

    def __add__(self, other: "Needs") -> "Needs":
        """Both."""
        larger = self if self.gpus >= other.gpus else other
        return Needs(
            " and ".join(filter(None, (self.of, other.of))),
            other.packages | self.packages,
            larger.gpus,
            larger.gpus_why,
            self.bf16 or other.bf16,
            self.compiles or other.compiles,
            *(getattr(self, name) + getattr(other, name) for name in ("models", "data", "code")),
            *(getattr(self, name) or getattr(other, name) for name in ("server", "output_dir", "launcher", "clash")),
            self.named + other.named,
        )


# Words after `--needs`
NAMED = {
    "gpu": Needs("`--needs gpu`", gpus=1, gpus_why="`--needs gpu` asks for one"),
    "bf16": Needs("`--needs bf16`", gpus=1, gpus_why="`--needs bf16` asks for one", bf16=True, named=("bf16",)),
    "vllm": Needs("`--needs vllm`", {"vllm": "`--needs vllm` asks for it"}),
    "deepspeed": Needs("`--needs deepspeed`", {"deepspeed": "`--needs deepspeed` asks for it"}),
}


def needs_of(argv: Sequence[str], launcher: str | None = None, processes: int | None = None) -> Needs:
    """What a recipe needs.

    Args:
        argv: Words of `trl-credit train`: the recipe, and fields that replace its own.
        launcher: The launcher's configuration; by default the one that the first launch line in the recipe's head names.
        processes: Processes that the launcher starts; by default what its configuration says.

    Raises:
        ValueError, TypeError: The recipe or the configuration cannot be read, or has unknown fields or methods.
    """
    argv = with_file_named(argv)
    check_early(argv)
    fields = _flat(words_of([*argv, ""]))
    recipe = fields.get("config")
    named = Path(launcher) if launcher is not None else _launcher_in(recipe)
    needs = _of_fields(fields, recipe)
    if named is not None:
        file = _shipped(launcher) if launcher is not None and not named.is_file() else named
        return needs + _of_launcher(file, launcher or str(named), fields, processes)
    if processes is not None and not is_true(fields.get("use_cpu")):
        needs += Needs(gpus=processes, gpus_why=f"`--num_processes` is {processes}")
    return needs


def _flat(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Fields as a command line means them: `--no_use_vllm` and `--use_vllm` without a value."""
    found = dict(fields)
    for name, value in fields.items():
        if value == "" or (isinstance(value, str) and value.startswith("--")):
            found[name] = True
            if name.startswith("no_"):
                found[name.removeprefix("no_")] = False
    return found


def _words(value: Any) -> list[str]:
    """The texts in a field that takes one or several."""
    if isinstance(value, str):
        return [value]
    return [item for item in value if isinstance(item, str)] if isinstance(value, Sequence) else []


def _of_fields(fields: Mapping[str, Any], recipe: str | None) -> Needs:
    packages = {}
    for name, package in _SWITCHES.items():
        if is_true(fields.get(name)):
            packages[package] = f"`{name}` is set"
    for (name, value), package in _VALUES.items():
        if value in _words(fields.get(name)):
            packages[package] = f"`{name}` is {value!r}"
    attention = str(fields.get("attn_implementation", ""))
    if "/" in attention:  # a kernel of the hub
        packages["kernels"] = f"`attn_implementation` is {attention!r}"
    if str(fields.get("optim", "")).endswith(("8bit", "_bnb")):
        packages["bitsandbytes"] = f"`optim` is {fields['optim']!r}"
    if fields.get("deepspeed"):
        packages["deepspeed"] = "`deepspeed` is set"
    for name in _DATA_FIELDS:
        if str(fields.get(name, "")).startswith("reasoning_gym:"):
            packages["reasoning-gym"] = f"`{name}` is {fields[name]!r}"
    on_cpu, vllm = is_true(fields.get("use_cpu")), is_true(fields.get("use_vllm"))
    bf16 = not on_cpu and not is_false(fields.get("bf16", True)) and not is_true(fields.get("fp16"))
    if on_cpu:
        gpus, why = 0, ""
    elif vllm and fields.get("vllm_mode", "colocate") == "colocate":
        gpus, why = 1, "vLLM runs beside the trainer (`vllm_mode: colocate`)"
    elif vllm:
        gpus, why = 1, "weights go to the vLLM server from GPU to GPU (NCCL)"
    else:
        gpus, why = int(bf16), "`bf16` is on, and without `use_cpu` it needs one"
    return Needs(
        recipe or "the command line",
        packages,
        gpus,
        why if gpus else "",
        bf16,
        models=tuple(_models(fields)),
        data=tuple(_data(fields)),
        code=tuple(_code(fields)),
        server=_server(fields) if vllm and fields.get("vllm_mode") == "server" else None,
        output_dir=fields["output_dir"] if isinstance(fields.get("output_dir"), str) else None,
    )


def _models(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in ("model_name_or_path", "reward_model_name_or_path"):
        if isinstance(fields.get(name), str):
            yield name, fields[name]
    credit = read_spec(fields.get("credit"))
    for part in credit if isinstance(credit, list) else [credit]:
        if isinstance(part, Mapping):
            yield from (
                (f"credit: {name}", part[name]) for name in ("reference", "model") if isinstance(part.get(name), str)
            )


def _data(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    for name in _DATA_FIELDS:
        value = fields.get(name)
        if isinstance(value, str) and not value.startswith(("trl_credit:", "reasoning_gym:")):
            yield name, value
    evaluation = mapping_of("eval", fields.get("eval")) or {}
    for task in _words(evaluation.get("tasks")):
        path = task.rpartition("=")[2]
        if path.endswith(_DATA_FILES):
            yield "eval: tasks", path


def _code(fields: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """Files in `FILE.py:NAME`, and DeepSpeed's."""
    if isinstance(fields.get("deepspeed"), str):
        yield "deepspeed", fields["deepspeed"]
    for name in ("reward_funcs", "rollout_func", "credit"):
        value = fields.get(name)
        for item in value if isinstance(value, list) else [value]:
            if isinstance(item, Mapping):
                item = item.get("name", item.get("method"))
            if isinstance(item, str) and (found := re.fullmatch(r"(.+\.py):[\w.]+", item)):
                yield name, found[1]


def _server(fields: Mapping[str, Any]) -> str:
    address = fields.get("vllm_server_base_url")
    if isinstance(address, str):
        return address.rstrip("/")
    return f"http://{fields.get('vllm_server_host', '0.0.0.0')}:{fields.get('vllm_server_port', _PORT)}"


def _launcher_in(recipe: str | None) -> Path | None:
    """The configuration in the first launch line of the comments at a recipe's head, if that file is here."""
    path = Path(os.path.expanduser(recipe or ""))
    if not path.is_file():
        return None
    head = []
    for line in path.read_text(encoding="utf-8", errors="replace").splitlines():
        if not line.startswith("#"):
            break
        head.append(line.strip("# ").rstrip("\\"))
    launched = " ".join(head).partition("Launch:")[2]
    commands = re.findall(r"trl-credit train|accelerate launch --config_file (\S+)", launched)
    if not commands or not commands[0]:
        return None
    # Written from the repository's root
    places = [Path(commands[0]), *(folder / commands[0] for folder in path.resolve().parents)]
    return next((place for place in places if place.is_file()), None)


def _shipped(name: str) -> Path:
    """The file of a launcher's configuration that TRL ships, by its name."""
    import importlib.util

    trl = importlib.util.find_spec("trl")  # of a package's top, this imports nothing
    folder = Path(trl.submodule_search_locations[0], "accelerate_configs") if trl else Path("accelerate_configs")
    path = folder / f"{name}.yaml"
    if not path.is_file():
        known = sorted(file.stem for file in folder.glob("*.yaml"))
        raise ValueError(
            f"`--accelerate_config`: there is no file and no configuration {name!r}. {nearest(name, known)}"
        )
    return path


def _of_launcher(path: Path, name: str, fields: Mapping[str, Any], asked: int | None = None) -> Needs:
    found = read_mapping(path, {}, "launcher configuration", "--accelerate_config")
    machines = _whole(found.get("num_machines"), 1)
    processes = max(1, (asked or _whole(found.get("num_processes"), 1)) // max(1, machines))
    on_cpu = is_true(found.get("use_cpu")) or is_true(fields.get("use_cpu"))
    kind = str(found.get("distributed_type", "NO")).upper()
    packages, compiles = {}, None
    if kind == "DEEPSPEED":
        packages["deepspeed"] = f"{name} starts DeepSpeed"
        settings = found.get("deepspeed_config") or {}
        if settings.get("offload_optimizer_device", "none") != "none":
            compiles = f"DeepSpeed's CPU optimizer (`offload_optimizer_device` in {name})"
    bf16 = not on_cpu and found.get("mixed_precision") == "bf16"
    what = name if asked is None else f"{name} with `--num_processes {asked}`"
    why = f"{what} starts {processes} process{'es' * (processes > 1)} on each machine"
    gpus, why = (0, "") if on_cpu else (processes, why)
    clash = precision_clash(found, name, fields)
    return Needs("", packages, gpus, why, bf16, compiles, launcher=name, clash=clash)


def _whole(value: Any, default: int) -> int:
    try:
        return int(value)
    except (TypeError, ValueError):
        return default
