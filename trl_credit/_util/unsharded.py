"""Loads models whole where DeepSpeed's ZeRO-3 partitions whatever transformers loads."""

import contextlib
from collections.abc import Iterator


@contextlib.contextmanager
def unsharded() -> Iterator[None]:
    """Keeps `from_pretrained` from partitioning models that each process uses by itself, outside the engine.

    Accelerate's `zero3_init_context_manager(enable=False)` does not: as of accelerate 1.15 it leaves transformers'
    DeepSpeed config in place.
    """
    from transformers.integrations import deepspeed

    config = deepspeed._hf_deepspeed_config_weak_ref
    deepspeed.unset_hf_deepspeed_config()
    try:
        yield
    finally:
        deepspeed._hf_deepspeed_config_weak_ref = config
