"""A script that answers one question about a package, in a process of its own: imports may hang, or end the process.

    python -P _child.py imported vllm:LLM
    python -P _child.py torch_facts

Prints one line of JSON, `{"value": ...}` or `{"error": [...]}`, the latter with the error that showed first and then its
causes. Imports nothing of this package.
"""

import importlib
import json
import os
import sys
import warnings


def imported(*places):
    """Imports modules, or names in them (`module:name`); the version of the last module."""
    version = None
    for place in places:
        module, _, name = place.partition(":")
        found = importlib.import_module(module)
        if name:
            getattr(found, name)
        version = getattr(found, "__version__", None)
    return None if version is None else str(version)


def torch_facts():
    """What torch says of this machine."""
    import torch

    facts = {
        "version": torch.__version__,
        "cuda": torch.version.cuda,
        "hip": getattr(torch.version, "hip", None),
        "gpus": [],
        "distributed": torch.distributed.is_available(),
    }
    with warnings.catch_warnings(record=True) as caught:  # of a driver that is too old, for example
        warnings.simplefilter("always")
        facts["available"] = torch.cuda.is_available()
        count = torch.cuda.device_count() if facts["available"] else 0
    facts["said"] = [" ".join(str(warning.message).split()) for warning in caught]
    facts["other"] = next(
        (name for name in ("xpu", "mps") if getattr(torch, name, None) is not None and _available(torch, name)), None
    )
    if facts["distributed"] and torch.distributed.is_nccl_available() and facts["available"]:
        facts["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    if facts["available"]:
        facts["architectures"] = torch.cuda.get_arch_list()
    for index in range(count):
        facts["gpus"].append(_gpu(torch, index))
    try:
        from torch.utils import cpp_extension

        facts["cuda_home"] = cpp_extension.CUDA_HOME
        facts["ninja"] = cpp_extension.is_ninja_available()
    except Exception:
        facts["cuda_home"], facts["ninja"] = None, None
    return facts


def deepspeed_ops():
    """DeepSpeed's compiled operations by name: whether they are installed, can be compiled here, or neither."""
    from deepspeed.git_version_info import installed_ops
    from deepspeed.ops.op_builder.all_ops import ALL_OPS

    found = {}
    for name, builder in sorted(ALL_OPS.items()):
        if name == "deepspeed_not_implemented":  # its stand-in where an accelerator lacks one
            continue
        try:
            usable = builder.is_compatible(verbose=False)
        except Exception:  # it looks for a CUDA toolkit, for example
            usable = False
        found[name] = "installed" if installed_ops.get(name) else "can be compiled" if usable else "not here"
    return found


def _available(torch, name):
    try:
        return bool(getattr(torch, name).is_available())
    except Exception:
        return False


def _gpu(torch, index):
    """One GPU, after a sum on it."""
    found = {"index": index}
    try:
        properties = torch.cuda.get_device_properties(index)
        found |= {
            "name": properties.name,
            "gib": round(properties.total_memory / 2**30, 1),
            "capability": f"{properties.major}.{properties.minor}",
        }
        with torch.cuda.device(index):
            found["bf16"] = bool(torch.cuda.is_bf16_supported(including_emulation=False))
            found["free_gib"] = round(torch.cuda.mem_get_info(index)[0] / 2**30, 1)
            total = torch.ones(
                8, device=f"cuda:{index}", dtype=torch.bfloat16 if found["bf16"] else torch.float32
            ).sum()
            found["error"] = None if total.item() == 8 else f"a sum of 8 ones gave {total.item()}"
    except Exception as error:
        found["error"] = f"{type(error).__name__}: {' '.join(str(error).split())[:300]}"
    return found


def _main():
    # What libraries print must not mix with the answer
    answer = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        told = {"value": globals()[sys.argv[1]](*sys.argv[2:])}
    except BaseException as error:
        chain, seen = [], error
        while seen is not None and len(chain) < 10:
            chain.append(f"{type(seen).__name__}: {seen}")
            seen = seen.__cause__ or (None if seen.__suppress_context__ else seen.__context__)
        told = {"error": chain}
    answer.write(json.dumps(told))
    answer.close()
    os._exit(0)  # libraries that were half imported may hang or crash on the way out


if __name__ == "__main__":
    _main()
