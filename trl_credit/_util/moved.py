"""Names of release 0.1 for modules that stand elsewhere now. They work for one release, with a warning."""

import importlib
import importlib.util
import sys
import warnings
from collections.abc import Sequence
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


MOVED = {
    "trl_credit.checkpoint": "trl_credit.extras.resume",
    "trl_credit.checkpoint_files": "trl_credit.extras.checkpoints",
    "trl_credit.collapse": "trl_credit.trainer.collapse",
    "trl_credit.comparison.statistics": "trl_credit.statistics.paired",
    "trl_credit.config": "trl_credit.trainer.config",
    "trl_credit.credit_log": "trl_credit.trainer.credit_log",
    "trl_credit.effect": "trl_credit.extras.effect",
    "trl_credit.evaluation.backends.local": "trl_credit.model_files",
    "trl_credit.evaluation.estimators": "trl_credit.statistics.repeated",
    "trl_credit.evaluation.training": "trl_credit.recipe.evaluation",
    "trl_credit.inspection.records": "trl_credit.records.record",
    "trl_credit.inspection.summary": "trl_credit.records.summary",
    "trl_credit.inspection.terminal": "trl_credit.records.terminal",
    "trl_credit.metrics": "trl_credit.methods.metrics",
    "trl_credit.nonfinite": "trl_credit.extras.nonfinite",
    "trl_credit.quickstart.build_model": "trl_credit.toy.build_model",
    "trl_credit.quickstart.task": "trl_credit.toy.arithmetic",
    "trl_credit.ratio": "trl_credit.trainer.gspo_token",
    "trl_credit.report.charts": "trl_credit.evaluation.charts",
    "trl_credit.report.comparison": "trl_credit.evaluation.compare_page",
    "trl_credit.report.credit": "trl_credit.records.page",
    "trl_credit.report.credit_plot": "trl_credit.records.picture",
    "trl_credit.report.evaluation": "trl_credit.evaluation.page",
    "trl_credit.report.learning": "trl_credit.comparison.page",
    "trl_credit.retired": "trl_credit._util.retired",
    "trl_credit.rewards.guard": "trl_credit.extras.reward_guard",
    "trl_credit.rollout": "trl_credit.extras.dynamic_sampling",
    "trl_credit.settings": "trl_credit._util.settings",
    "trl_credit.signals.statistics": "trl_credit.signals.divergence",
}


class _Alias(Loader):
    def create_module(self, spec: ModuleSpec) -> None:
        return None

    def exec_module(self, module: ModuleType) -> None:
        there = importlib.import_module(MOVED[module.__name__])
        module.__getattr__ = lambda name: getattr(there, name)


class _Finder(MetaPathFinder):
    def find_spec(self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None):
        if fullname not in MOVED:
            return None
        warnings.warn(
            f"`{fullname}` is `{MOVED[fullname]}` now; the old name goes with the next release.",
            FutureWarning,
            stacklevel=2,
        )
        return importlib.util.spec_from_loader(fullname, _Alias())


def install() -> None:
    """Makes the old names importable."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.append(_Finder())
