"""What a run's rewards were, for the error of a run that trained nothing."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import nn

from ..rewards import required_columns


# Usual columns of the answer, which a reward may read without a parameter of that name
_ANSWERS = ("solution", "answer")


class RewardsSeen:
    """Counts the rewards of each function, and the rows in which a column that it reads is empty.

    Args:
        functions: The reward functions and reward models.
        names: Their names.
        device: Where to count.
    """

    def __init__(self, functions: Sequence[Callable], names: Sequence[str], device: torch.device):
        self.names = list(names)
        self.readers: dict[str, str] = {}
        for function, name in zip(functions, names, strict=True):
            if not isinstance(function, nn.Module):
                self.readers = dict.fromkeys(required_columns(function), name) | self.readers
        self.columns = [*self.readers, *([] if set(_ANSWERS) & set(self.readers) else _ANSWERS)]
        self.missing = torch.zeros(len(self.names), device=device)
        self.least = torch.full((len(self.names),), math.inf, device=device)
        self.most = torch.full((len(self.names),), -math.inf, device=device)
        self.scored = 0
        # Of each column: rows that have it, and rows in which it is empty
        self.rows = torch.zeros(len(self.columns), 2, device=device)

    def add(self, rewards: torch.Tensor, rows: Sequence[Mapping[str, Any]]) -> None:
        """Counts the (N, F) rewards of all processes, NaN for none, and the rows of this one."""
        unknown = rewards.isnan()
        self.scored += len(rewards)
        self.missing += unknown.sum(0)
        self.least = torch.minimum(self.least, rewards.masked_fill(unknown, math.inf).amin(0))
        self.most = torch.maximum(self.most, rewards.masked_fill(unknown, -math.inf).amax(0))
        counts = [
            [sum(column in row for row in rows), sum(column in row and _is_empty(row[column]) for row in rows)]
            for column in self.columns
        ]
        self.rows += torch.tensor(counts, device=self.rows.device).to(self.rows)

    def described(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> str:
        """Sentences about the rewards and the columns that are empty.

        Args:
            reduce: Sums a tensor over all processes.
        """
        sentences = []
        if not self.scored:  # a subclass makes the rewards itself
            return ""
        for name, missing, least, most in zip(
            self.names, self.missing.tolist(), self.least.tolist(), self.most.tolist(), strict=True
        ):
            if missing == self.scored:
                sentences.append(f"`{name}` always gave `None`.")
            elif least == most:
                sentences.append(f"`{name}` was always {least:g}{' or `None`' * bool(missing)}.")
            else:
                sentences.append(f"`{name}` was between {least:g} and {most:g}.")
        for column, (rows, empty) in zip(self.columns, reduce(self.rows).tolist(), strict=True):
            if empty:
                reader = f", which `{self.readers[column]}` reads," if column in self.readers else ""
                field = " (see `answer_column`)" if column in _ANSWERS else ""
                sentences.append(
                    f"The column {column!r}{reader} is empty in {100 * empty / rows:.0f} % of the rows{field}."
                )
        return " ".join(sentences)


def _is_empty(value: Any) -> bool:
    if isinstance(value, str):
        return not value.strip()
    return value is None or (isinstance(value, float) and math.isnan(value)) or (isinstance(value, list) and not value)
