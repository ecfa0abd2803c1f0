"""Layouts: how a run is spread over GPUs, and what each GPU then holds of it."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Layout:
    """A way to spread a run over GPUs.

    Args:
        name: Its name.
        file: The accelerate config that launches it, in recipes/accelerate.
        splits_weights: Weights are partitioned, too, and so are frozen models.
        splits_state: Gradients and optimizer state are partitioned.
        master: Weights are in half precision, beside partitioned float32 master weights. Else the weights are the master.
        defers: Gradients travel once per optimizer step; else in each micro-batch.
        casts: With the weights in float32, autocast keeps a half-precision copy of each matrix until the backward.
    """

    name: str
    file: str
    splits_weights: bool = False
    splits_state: bool = False
    master: bool = False
    defers: bool = False
    casts: bool = False

    def file_for(self, machines: int) -> str:
        """The accelerate config for so many machines."""
        return "zero3_multinode.yaml" if self.name == "zero3" and machines > 1 else self.file


LAYOUTS = {
    layout.name: layout
    for layout in (
        Layout("one", "one_gpu.yaml", casts=True),
        Layout("ddp", "ddp.yaml", defers=True, casts=True),
        Layout("zero2", "zero2.yaml", splits_state=True, master=True),
        Layout("zero3", "zero3.yaml", splits_weights=True, splits_state=True, master=True),
        Layout("fsdp2", "fsdp2.yaml", splits_weights=True, splits_state=True, defers=True),
    )
}


def candidates(gpus: int, adapters: bool, quantized: bool) -> tuple[Layout, ...]:
    """The layouts for so many GPUs, the one with the least communication that is likely to fit first.

    Args:
        gpus: All GPUs.
        adapters: Whether only adapters are trained: then there is hardly any state to split.
        quantized: Whether the weights are quantized, which FSDP2 and DeepSpeed do not partition here.
    """
    if gpus == 1:
        names = ["one"]
    elif quantized:
        names = ["ddp"]
    elif adapters:
        names = ["ddp", "zero3", "fsdp2"]
    else:
        names = ["zero2", "zero3", "fsdp2", "ddp"]
    return tuple(LAYOUTS[name] for name in names)


def check_layout(name: str, gpus: int, quantized: bool) -> Layout:
    """The layout of a name. Raises `ValueError` if it cannot be used with so many GPUs."""
    if (name == "one") != (gpus == 1):
        way_out = "set `--gpus 1`, or `--layout ddp`" if name == "one" else "use `--layout one`, or more GPUs"
        raise ValueError(f"`layout`: {name!r} does not go with `gpus` {gpus}: {way_out}.")
    if quantized and LAYOUTS[name].splits_state:
        raise ValueError(f"`layout`: {name!r} does not partition quantized weights here: use `--layout ddp`.")
    return LAYOUTS[name]
