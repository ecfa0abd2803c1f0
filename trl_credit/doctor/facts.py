"""Everything that is known of an environment, collected in seconds."""

from collections.abc import Callable, Collection
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .._version import __version__
from . import machine, packages
from .children import Answer, ask
from .machine import Machine
from .packages import Package


# What to import of each package: the names that training and evaluation use
_IMPORTS = {
    "trl": ("trl:GRPOTrainer",),
    "vllm": ("vllm:LLM", "vllm:SamplingParams"),
    "flash-attn": ("flash_attn",),
    "triton": ("triton", "triton.language"),
    "liger-kernel": ("liger_kernel.transformers",),
    "math-verify": ("math_verify",),
}
# Asked only for what needs them
_IF_NEEDED = {
    "deepspeed": ("deepspeed",),
    "bitsandbytes": ("bitsandbytes",),
    "matplotlib": ("matplotlib.pyplot",),
    "reasoning-gym": ("reasoning_gym",),
    "diffusers": ("diffusers:DiffusionPipeline",),
}
# Asked only if TRL, which imports them, cannot be imported
_BELOW_TRL = {
    "transformers": ("transformers:AutoModelForCausalLM", "transformers:AutoProcessor", "transformers:Trainer"),
    "peft": ("peft:get_peft_model",),
    "accelerate": ("accelerate:Accelerator",),
    "datasets": ("datasets:load_dataset",),
}
# vLLM and DeepSpeed take half a minute on a slow disk
_SECONDS = 120


@dataclass(frozen=True)
class Facts:
    """An environment.

    Args:
        machine: What there is besides packages.
        packages: Packages by name.
        torch: What torch says (`_child.torch_facts`); `error` in it says why it does not.
        imports: Answers by package: whether it can be imported. Packages that are not installed are left out, and those
            that are needed for little unless they are asked for.
        ops: DeepSpeed's compiled operations (`_child.deepspeed_ops`), if it was asked for.
        version: Version of trl-credit.
    """

    machine: Machine
    packages: dict[str, Package]
    torch: Answer
    imports: dict[str, Answer] = field(default_factory=dict)
    ops: dict[str, str] = field(default_factory=dict)
    version: str = __version__

    @property
    def gpus(self) -> list[dict[str, Any]]:
        """GPUs that torch can compute on."""
        return [gpu for gpu in (self.torch.value or {}).get("gpus", []) if gpu["error"] is None]

    def installed(self, name: str) -> bool:
        """True if a package is installed."""
        package = self.packages.get(name)
        return package is not None and package.installed is not None

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        return {
            "trl_credit": self.version,
            "machine": asdict(self.machine),
            "torch": self.torch.value if self.torch.error is None else {"error": self.torch.error},
            "packages": {name: asdict(package) for name, package in self.packages.items()},
            "imports": {name: answer.error or "ok" for name, answer in self.imports.items()},
            "deepspeed_ops": self.ops,
        }


def collect(needed: Collection[str] = (), ask: Callable[..., Answer] = ask) -> Facts:
    """Looks at packages and machine. Asks several children at a time; none can stop it.

    Args:
        needed: Packages that are asked for.
        ask: How a child is asked.
    """
    found = packages.survey()

    def imports(pool: ThreadPoolExecutor, of: dict[str, tuple[str, ...]]) -> dict[str, Future]:
        asked = {name: places for name, places in of.items() if name in found and found[name].installed is not None}
        return {name: pool.submit(ask, "imported", *places, seconds=_SECONDS) for name, places in asked.items()}

    # Two at a time: more would wait for the same disk
    with ThreadPoolExecutor(max_workers=2) as pool:
        torch = pool.submit(ask, "torch_facts", seconds=_SECONDS)
        answers = imports(pool, _IMPORTS | {name: places for name, places in _IF_NEEDED.items() if name in needed})
        ops = pool.submit(ask, "deepspeed_ops", seconds=_SECONDS) if "deepspeed" in answers else None
        here = machine.survey()
        # The toolkit that torch compiles with, which may be none of the variables'
        home = (torch.result().value or {}).get("cuda_home")
        here = replace(here, nvcc=machine.nvcc_version(home)) if home else here
        if "trl" in answers and answers["trl"].result().error is not None:
            answers |= imports(pool, _BELOW_TRL)
        told = {name: answer.result() for name, answer in answers.items()}
        return Facts(here, found, torch.result(), told, (ops.result().value or {}) if ops else {})
