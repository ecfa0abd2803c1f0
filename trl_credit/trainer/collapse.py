"""Notices, once, that a credit method has been uniform in effect for many updates."""

import math
from collections.abc import Mapping

from accelerate.logging import get_logger

from ..methods import CreditInputs, CreditMethod


logger = get_logger(__name__)

# Updates in a row
PATIENCE = 20


class CollapseWatch:
    """Warns once when a method other than `uniform` has been uniform in effect for 20 updates in a row, and says what to
    change ([`~trl_credit.CreditMethod.is_uniform`], [`~trl_credit.CreditMethod.remedy`]).

    Updates in which nothing was weighted do not count. An update counts as uniform if each of its micro-batches was, which
    is known when the next one begins.
    """

    def __init__(self, method: CreditMethod, patience: int = PATIENCE):
        self._method = method
        self._patience = patience
        self._warned = False
        self._streak = 0
        self._update: int | None = None
        self._uniform = False
        self._fraction = math.nan
        self._inputs: CreditInputs | None = None

    def see(self, update: int, metrics: Mapping[str, float], inputs: CreditInputs) -> None:
        """Looks at a micro-batch.

        Args:
            update: Number of the update that it belongs to.
            metrics: Its credit metrics.
            inputs: What the method saw, from which it says what to change.
        """
        uniform = None if self._warned else self._method.is_uniform(metrics)
        if uniform is None:
            return
        if update != self._update:
            self._end_update()
            self._update, self._uniform = update, True
        self._uniform &= uniform
        self._fraction = metrics["credit/effective_fraction"]
        if uniform and inputs.mask.any():  # a process without completions has a placeholder
            self._inputs = inputs

    def _end_update(self) -> None:
        if self._update is None:
            return
        self._streak = self._streak + 1 if self._uniform else 0
        if self._streak < self._patience:
            return
        self._warned = True
        logger.warning(
            "Credit method %r has been uniform in effect for %d updates (effective token fraction %.4f): this is GRPO in "
            "all but name.%s",
            self._method.name,
            self._patience,
            self._fraction,
            f" What to change: {self._method.remedy(self._inputs)}" if self._inputs is not None else "",
        )
        self._inputs = None

    def state_dict(self) -> dict[str, int]:
        """State from which a resumed run continues."""
        return {"streak": self._streak + (self._update is not None and self._uniform), "warned": int(self._warned)}

    def load_state_dict(self, state: Mapping[str, int]) -> None:
        self._streak, self._warned = int(state["streak"]), bool(state["warned"])
