"""Settings of a recipe that the formulas do not see."""

from typing import Any


def uncounted(args: Any, model_args: Any) -> list[str]:
    """Names of the settings that are not counted, as written."""
    found = []
    for source, names in (
        (args, ("use_liger_kernel", "torch_compile", "cast_lm_head_to_fp32")),
        (model_args, ("use_bnb_nested_quant", "bnb_4bit_quant_storage")),
    ):
        found += [f"`{name}`" for name in names if getattr(source, name, None)]
    optimizer = str(getattr(args.optim, "value", args.optim))
    if optimizer not in ("adamw_torch", "adamw_torch_fused", "adamw_apex_fused"):
        found.append(f"`optim: {optimizer}` (counted as AdamW)")
    if str(getattr(args.eval_strategy, "value", args.eval_strategy)) != "no":
        found.append("evaluation within training")
    return found


def refuse(args: Any, model_args: Any, adapters: bool, gpus: int) -> None:
    """Raises `ValueError` for settings with which TRL does not start."""
    split, colocate = args.vllm_tensor_parallel_size, args.use_vllm and args.vllm_mode == "colocate"
    if colocate and gpus % split:
        raise ValueError(
            f"`vllm_tensor_parallel_size` ({split}) does not divide `gpus` ({gpus}), and TRL gives each engine as many. Set "
            f"it to one of {', '.join(str(each) for each in range(1, min(gpus, 8) + 1) if gpus % each == 0)}."
        )
    for name in ("load_in_4bit", "load_in_8bit"):
        if getattr(model_args, name) and not adapters:
            raise ValueError(
                f"`{name}` (true) quantizes weights, which cannot be trained. Set `use_peft: true`, or remove it."
            )
    if model_args.load_in_8bit and colocate:
        raise ValueError(
            "`load_in_8bit` (true) does not go with `vllm_mode: colocate`: vLLM does not take 8-bit weights. Use "
            "`load_in_4bit`, or `vllm_mode: server`."
        )
