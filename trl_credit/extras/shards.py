"""How parameters are sharded, and the part that this process holds."""

import os

import torch
from accelerate.utils import parse_flag_from_env
from torch.distributed.tensor import DTensor
from transformers import TrainingArguments


def fsdp_version(args: TrainingArguments) -> int | None:
    """The version of FSDP that will run the policy, of `fsdp_config` or of the launcher, which sets the environment; `None`
    without FSDP."""
    if args.fsdp_plugin_args is not None:
        return args.fsdp_plugin_args["fsdp_version"]
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return None
    return int(os.environ.get("FSDP_VERSION", "1"))


def local_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """This process's part of a parameter: its shard under ZeRO-3 and FSDP2, else all of it."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3
        return parameter.ds_tensor.data
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.data
