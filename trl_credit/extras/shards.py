"""The part of a parameter that this process holds."""

import torch
from torch.distributed.tensor import DTensor


def local_part(parameter: torch.nn.Parameter) -> torch.Tensor:
    """The part of a parameter that this process has: all of it, or its shard under ZeRO-3 and FSDP2."""
    if hasattr(parameter, "ds_tensor"):  # ZeRO-3
        return parameter.ds_tensor.data
    return parameter.to_local().detach() if isinstance(parameter, DTensor) else parameter.data
