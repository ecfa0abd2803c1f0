"""Public names of release 0.1 that have moved. The old names work for one release, with a warning.

Helpers that were renamed, or whose parameters changed, are not included. A name may have another in its new module.
"""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


# Removed modules, and the modules that have their names now
MOVED: dict[str, tuple[str, ...]] = {
    "trl_credit.checkpoint": (
        "trl_credit.extras.resume",
        "trl_credit.extras.checkpoints",
        "trl_credit.extras.preemption",
        "trl_credit.extras.shards",
    ),
    "trl_credit.checkpoint_files": ("trl_credit.extras.checkpoints",),
    "trl_credit.collapse": ("trl_credit.trainer.collapse",),
    "trl_credit.comparison.statistics": ("trl_credit.statistics.paired",),
    "trl_credit.config": ("trl_credit.trainer.config", "trl_credit.trainer.exactness"),
    "trl_credit.credit_log": ("trl_credit.trainer.credit_log",),
    "trl_credit.effect": ("trl_credit.extras.effect",),
    "trl_credit.evaluation.backends.local": ("trl_credit.model_files", "trl_credit.evaluation.backends.prompts"),
    "trl_credit.evaluation.estimators": ("trl_credit.statistics.repeated",),
    "trl_credit.evaluation.training": ("trl_credit.recipe.evaluation",),
    "trl_credit.inspection.records": ("trl_credit.records.record",),
    "trl_credit.inspection.summary": ("trl_credit.records.summary",),
    "trl_credit.inspection.terminal": ("trl_credit.records.terminal",),
    "trl_credit.metrics": ("trl_credit.methods.metrics",),
    "trl_credit.nonfinite": ("trl_credit.extras.nonfinite",),
    "trl_credit.quickstart.build_model": ("trl_credit.toy.build_model",),
    "trl_credit.quickstart.run": ("trl_credit.quickstart",),
    "trl_credit.quickstart.task": ("trl_credit.toy.arithmetic",),
    "trl_credit.ratio": ("trl_credit.trainer.gspo_token",),
    "trl_credit.report.charts": ("trl_credit.evaluation.charts", "trl_credit.report.svg"),
    "trl_credit.report.comparison": ("trl_credit.evaluation.compare_page",),
    "trl_credit.report.credit": ("trl_credit.records.page",),
    "trl_credit.report.credit_plot": ("trl_credit.records.picture",),
    "trl_credit.report.evaluation": ("trl_credit.evaluation.page",),
    "trl_credit.report.learning": ("trl_credit.comparison.page",),
    "trl_credit.retired": ("trl_credit._util.retired",),
    "trl_credit.rewards.guard": ("trl_credit.extras.reward_guard",),
    "trl_credit.rollout": (
        "trl_credit.extras.dynamic_sampling",
        "trl_credit.extras.prompt_stream",
        "trl_credit.extras.groups",
    ),
    "trl_credit.settings": ("trl_credit._util.settings",),
    "trl_credit.signals.statistics": ("trl_credit.signals.divergence",),
}

# Names that modules have lost to others: the module, or the module and, after a colon, the name there
MOVED_NAMES: dict[str, dict[str, str]] = {
    "trl_credit.train": {
        "embedded_model_path": "trl_credit.model_files",
        "resolve_model": "trl_credit.model_files",
        "base_of_adapter": "trl_credit.model_files",
        "check_model": "trl_credit.model_files",
        "CreditScriptArguments": "trl_credit.recipe.recipe",
        "build_datasets": "trl_credit.recipe.recipe",
        "build_rewards": "trl_credit.recipe.recipe",
        "trainer_arguments": "trl_credit.recipe.recipe",
        "load_rollout": "trl_credit.recipe.recipe",
        "check_trackers": "trl_credit.recipe.recipe",
        "mapping_of": "trl_credit._util.values",
    },
    "trl_credit.methods.base": {
        "UNIFORM_FRACTION": "trl_credit.methods.ops",
        "at_least_float32": "trl_credit.methods.ops",
        "mean_one": "trl_credit.methods.ops",
        "effective_token_fraction": "trl_credit.methods.ops",
        "nearest": "trl_credit._util.text",
    },
    "trl_credit.signals.base": {
        "FORWARD_KEYS": "trl_credit.signals.models",
        "MODEL_INPUT_KEYS": "trl_credit.signals.models",
        "HiddenStates": "trl_credit.signals.models",
        "causal_model": "trl_credit.signals.models",
        "check_backbone": "trl_credit.signals.models",
        "completion_hidden_states": "trl_credit.signals.models",
        "eval_mode": "trl_credit.signals.models",
        "model_inputs": "trl_credit.signals.models",
        "vocabulary_size": "trl_credit.signals.models",
    },
    "trl_credit.inspection.scoring": {
        "labelled": "trl_credit.methods.compose",
        "inputs_of": "trl_credit.methods.compose",
        "credit_of": "trl_credit.methods.compose",
    },
    "trl_credit.bench.baselines": {
        "Random": "trl_credit.methods.random:RandomTokens",
    },
    "trl_credit.comparison.results": {
        "show": "trl_credit.comparison.output",
        "write_results": "trl_credit.comparison.output",
    },
    "trl_credit.evaluation.config": {
        "Preset": "trl_credit.evaluation.presets",
    },
}


def _warn(old: str, new: str) -> None:
    warnings.warn(f"`{old}` has moved to `{new}`; the next release removes the old name.", FutureWarning, stacklevel=3)


def moved_names(module: str) -> Callable[[str], Any]:
    """A module's `__getattr__` (PEP 562) for names that moved elsewhere."""

    def get(name: str) -> Any:
        home, _, new = MOVED_NAMES[module].get(name, "").partition(":")
        if not home:
            raise AttributeError(f"module {module!r} has no attribute {name!r}")
        new = new or name
        _warn(f"{module}.{name}", f"{home}.{new}")
        return getattr(importlib.import_module(home), new)

    return get


class _Alias(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        def get(name: str) -> Any:
            for home in map(importlib.import_module, MOVED[module.__name__]):
                if name in vars(home):
                    return getattr(home, name)
            raise AttributeError(f"module {module.__name__!r} has no attribute {name!r}")

        module.__getattr__ = get


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        if fullname not in MOVED:
            return None
        _warn(fullname, MOVED[fullname][0])
        return importlib.util.spec_from_loader(fullname, _Alias())


def install() -> None:
    """Makes old module names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
