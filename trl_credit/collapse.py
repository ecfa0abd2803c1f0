"""Notices, once, that a credit method has been uniform in effect for many updates."""

from collections.abc import Mapping

from accelerate.logging import get_logger

from .methods import CreditInputs, CreditMethod


logger = get_logger(__name__)

# Updates in a row
PATIENCE = 20


class CollapseWatch:
    """Warns once when a method other than `uniform` has been uniform in effect for 20 updates in a row, and says what to
    change ([`~trl_credit.CreditMethod.is_uniform`], [`~trl_credit.CreditMethod.remedy`]).

    Updates in which nothing was weighted do not count. An update counts as uniform if each of its micro-batches was.
    """

    def __init__(self, method: CreditMethod, patience: int = PATIENCE):
        self._method = method
        self._patience = patience
        self._warned = False
        self._streak = 0
        self._update: int | None = None
        self._uniform = True

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
            self._streak = self._streak + 1 if self._uniform and self._update is not None else 0
            self._update, self._uniform = update, True
        self._uniform &= uniform
        if self._uniform and self._streak + 1 >= self._patience:
            self._warned = True
            logger.warning(
                "Credit method %r has been uniform in effect for %d updates (effective token fraction %.4f): this is GRPO "
                "in all but name. What to change: %s",
                self._method.name,
                self._patience,
                metrics["credit/effective_fraction"],
                self._method.remedy(inputs),
            )
