"""Warns once if a credit method's weights stay effectively uniform for many updates, or completions shrink."""

import math
from collections.abc import Mapping
from typing import Any

from accelerate.logging import get_logger

from ..methods import CreditInputs, CreditMethod
from ..methods.mix import inputs_of


logger = get_logger(__name__)

# Consecutive uniform updates before the warning
PATIENCE = 20
# Generation batches of which lengths are averaged, and the share of the first length that calls for a warning
LENGTH_BATCHES, SHORT = 10, 0.5
# What shows a collapse, and its name
_MEASURES = {
    "credit/baseline_change": "mean change of the baseline's share",
    "credit/effective_fraction": "effective token fraction",
    "credit/advantage_change": "mean change of the advantage",
}


class CollapseWatches:
    """Watches each of the methods that a credit method is made of ([`~trl_credit.CreditMethod.components`])."""

    def __init__(self, method: CreditMethod):
        self._watches = {
            label: CollapseWatch(part, part_of_list=bool(label)) for label, part in method.components().items()
        }

    def see(self, update: int, metrics: Mapping[str, float], inputs: CreditInputs) -> None:
        """Records a micro-batch; see [`CollapseWatch.see`]."""
        for place, (label, watch) in enumerate(self._watches.items()):
            if label:
                prefix = f"credit/{label}"
                own = {
                    f"credit/{name.removeprefix(prefix)}": value
                    for name, value in metrics.items()
                    if name.startswith(prefix)
                }
                watch.see(update, own, inputs_of(watch.method, inputs, place))
            else:
                watch.see(update, metrics, inputs)

    def state_dict(self) -> dict[str, dict[str, int]]:
        """State for checkpoints."""
        return {label: watch.state_dict() for label, watch in self._watches.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        state = state if "streak" not in state else {"": state}  # of release 0.1
        for label, watch in self._watches.items():
            if label in state:
                watch.load_state_dict(state[label])


class CollapseWatch:
    """If a method other than `uniform` collapses to uniform weights for 20 updates in a row, warns once and says what
    to change ([`~trl_credit.CreditMethod.is_uniform`], [`~trl_credit.CreditMethod.remedy`]).

    Updates without weighted completions do not count. An update is uniform if all its micro-batches are, so it is
    counted when the next update starts.
    """

    def __init__(self, method: CreditMethod, patience: int = PATIENCE, part_of_list: bool = False):
        self.method = method
        self._part_of_list = part_of_list
        self._patience = patience
        self._warned = False
        self._streak = 0
        self._update: int | None = None
        self._uniform = False
        self._measured = ""
        self._inputs: CreditInputs | None = None

    def see(self, update: int, metrics: Mapping[str, float], inputs: CreditInputs) -> None:
        """Records a micro-batch.

        Args:
            update: Number of its update.
            metrics: Its credit metrics.
            inputs: The method's inputs, from which it derives its advice.
        """
        uniform = None if self._warned else self.method.is_uniform(metrics)
        if uniform is None:
            return
        if update != self._update:
            self._end_update()
            self._update, self._uniform = update, True
        self._uniform &= uniform
        measured = [name for name in _MEASURES if not math.isnan(metrics.get(name, math.nan))]
        self._measured = f"{_MEASURES[measured[0]]} {metrics[measured[0]]:.4f}" if measured else "by its own metrics"
        if uniform and inputs.mask.any():  # not the placeholder of a process without completions
            self._inputs = inputs

    def _end_update(self) -> None:
        if self._update is None:
            return
        self._streak = self._streak + 1 if self._uniform else 0
        if self._streak < self._patience:
            return
        self._warned = True
        logger.warning(
            "Credit method %r: %s for %d updates (%s): %s.%s",
            self.method.name,
            self.method.when_uniform,
            self._patience,
            self._measured,
            "this method of the list has no effect" if self._part_of_list else f"this run is {self.method.then_equals}",
            f" What to change: {self.method.remedy(self._inputs)}" if self._inputs is not None else "",
        )
        self._inputs = None

    def state_dict(self) -> dict[str, int]:
        """State for checkpoints."""
        return {"streak": self._streak + (self._update is not None and self._uniform), "warned": int(self._warned)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._streak, self._warned = int(state["streak"]), bool(state["warned"])


class LengthWatch:
    """If completions shrink to half of their first mean length, warns once. For methods that are known to shorten them
    ([`~trl_credit.CreditMethod.watches_length`]).

    It compares the mean of the first generation batches with the mean of the latest ones.
    """

    def __init__(self, method: CreditMethod, batches: int = LENGTH_BATCHES, short: float = SHORT):
        parts = method.components().values()
        self.names = [part.name for part in parts if part.watches_length]
        self._batches, self._short = batches, short
        self._first: list[float] = []
        self._latest: list[float] = []
        self._warned = False

    def see(self, mean_length: float) -> None:
        """Records the mean length, in tokens, of a generation batch's completions."""
        if self._warned or not self.names or math.isnan(mean_length):
            return
        if len(self._first) < self._batches:
            self._first.append(mean_length)
            return
        self._latest = [*self._latest, mean_length][-self._batches :]
        if len(self._latest) < self._batches:
            return
        first, latest = sum(self._first) / self._batches, sum(self._latest) / self._batches
        if latest < self._short * first:
            self._warned = True
            logger.warning(
                "Completions shrank from %.0f to %.0f tokens on average. Credit method %s is known for it: the hint makes "
                "short answers likelier. Lower its strength over the updates, or set `credit` to another method.",
                first,
                latest,
                " and ".join(map(repr, self.names)),
            )

    def state_dict(self) -> dict[str, Any]:
        """State for checkpoints."""
        return {"first": list(self._first), "latest": list(self._latest), "warned": self._warned}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._first, self._latest = list(state["first"]), list(state["latest"])
        self._warned = bool(state["warned"])
