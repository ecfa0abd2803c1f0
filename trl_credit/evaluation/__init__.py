"""Evaluation on AIME and other mathematical tasks: avg@n, pass@k and maj@k with their uncertainty."""

from typing import TYPE_CHECKING

from .._util.lazy import lazy_names


if TYPE_CHECKING:
    from .compare import compare_runs
    from .config import EvalConfig
    from .run import evaluate

__getattr__, __dir__ = lazy_names(__name__, {"EvalConfig": ".config", "compare_runs": ".compare", "evaluate": ".run"})

__all__ = ["EvalConfig", "compare_runs", "evaluate"]
