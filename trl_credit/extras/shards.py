"""The part of a parameter that this process holds."""

import torch
from torch.distributed.tensor import DTensor


def local_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """This process's part of a parameter: its shard under ZeRO-3 and FSDP2, else all of it."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3
        return parameter.ds_tensor.data
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.data
