"""How large the methods' gradients are, and how often they were cut.

Credit changes the gradient's size. Adam divides by the running size of the gradient, so a constant factor changes
nothing (as long as it is far above Adam's epsilon); a cut at `max_grad_norm` makes every update that is cut equally
long, and SGD would take the factor as a larger learning rate.
"""

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np


def gradient_scale(runs: Collection[Mapping[str, Any]], limit: float | None) -> dict[str, float] | None:
    """The size of a method's gradients before they are cut.

    Args:
        runs: Its finished runs.
        limit: `max_grad_norm`; 0 or `None` if gradients are not cut.

    Returns:
        `median`, the median norm over all updates with a gradient, and `cut`, the share of them above the limit. `None`
        if no run logged norms.
    """
    norms = np.array([v for run in runs for v in run["history"].get("grad_norm") or [] if v], float)
    if not len(norms):
        return None
    return {"median": float(np.median(norms)), "cut": float((norms > limit).mean()) if limit else 0.0}


def scale_sentence(methods: Sequence[Mapping[str, Any]], baseline: str) -> str | None:
    """Compares the methods' gradients with the baseline's. `None` if a norm is missing, or nothing is there to compare."""
    scales = {method["label"]: method.get("gradient") for method in methods}
    own = scales.get(baseline)
    others = {label: scale for label, scale in scales.items() if label != baseline and scale}
    if not own or not others:
        return None
    listed = "; ".join(
        f"{label} {scale['median'] / own['median']:.2g} times as long, {_percent(scale['cut'])} cut"
        for label, scale in others.items()
    )
    return (
        f"Gradients, relative to {baseline}'s (median norm {own['median']:.2g}, {_percent(own['cut'])} of the updates cut "
        f"at `max_grad_norm`): {listed}."
    )


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
