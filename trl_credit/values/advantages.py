"""Token advantages from the values of prefixes."""

from collections.abc import Sequence

import numpy as np


def segment_advantages(values: Sequence[float], ends: Sequence[int]) -> np.ndarray:
    """(T,) advantages: V(end) - V(start) on every token of a segment. A NaN value makes both its segments NaN.

    Args:
        values: (S + 1,) values: of the prompt alone, then at each segment's end.
        ends: (S,) exclusive ends of the segments, ascending, the last is T.

    Raises:
        ValueError: The numbers do not fit together, or the ends do not ascend.
    """
    values, ends = np.asarray(values, np.float64), np.asarray(ends, np.int64)
    if values.shape != (len(ends) + 1,):
        raise ValueError(f"{len(ends)} segments need {len(ends) + 1} values, got an array of shape {values.shape}.")
    lengths = np.diff(ends, prepend=0)
    if (lengths <= 0).any():
        raise ValueError(f"The ends of segments must ascend from 1, got {ends.tolist()}.")
    return np.repeat(np.diff(values), lengths)
