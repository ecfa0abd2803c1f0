"""Solutions of which any one is right: judges each, then merges the outcomes."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, TypeVar

from .judge import Judgement, _cut, judge
from .verifier import Verdict, default_verifier


Solution = str | list[str]
_Outcome = TypeVar("_Outcome")
_RIGHT = "any of: "


def as_solution(value: Any) -> Solution:
    """Converts a value of the column `solution`: to text, or to a list of texts of which any one is right."""
    return [str(item) for item in value] if isinstance(value, (list, tuple)) else str(value)


def shown(solution: Solution) -> str:
    """A solution as text for display."""
    return solution if isinstance(solution, str) else " or ".join(solution)


def judge_any(completions: Sequence[str], solutions: Sequence[Solution], **kwargs: Any) -> list[Judgement]:
    """[`judge.judge`] for solutions that may be lists.

    A completion is right if any item of the list makes it right, and undecided (`None`) only if all items leave it so.
    All right answers to a list share one vote, which no other answer has. Other answers keep their own votes.

    Args:
        completions: (N,) texts.
        solutions: (N,) texts, or lists of them.
        **kwargs: Arguments of [`judge.judge`].
    """
    groups = _each(lambda texts, golds: judge(texts, golds, **kwargs), completions, solutions)
    return [_together(group, solution) for group, solution in zip(groups, solutions, strict=True)]


def verify_any(completions: Sequence[str], solutions: Sequence[Solution], **request: Any) -> list[Verdict]:
    """`verify` of the [`default_verifier`] for solutions that may be lists. Keeps the best verdict of each list.

    Args:
        completions: (N,) texts.
        solutions: (N,) texts, or lists of them.
        **request: Arguments of `verify`. `lengths` is (N,).
    """
    counts = _counts(solutions)
    if "lengths" in request:
        request["lengths"] = _repeated(request["lengths"], counts)
    groups = _each(lambda texts, golds: default_verifier().verify(texts, golds, **request), completions, solutions)
    return [max(group, key=lambda v: -float("inf") if v.reward is None else v.reward) for group in groups]


def _counts(solutions: Sequence[Solution]) -> list[int]:
    return [1 if isinstance(solution, str) else len(solution) for solution in solutions]


def _repeated(values: Sequence[Any], counts: Sequence[int]) -> list[Any]:
    return [value for value, count in zip(values, counts, strict=True) for _ in range(count)]


def _each(
    function: Callable[[list[str], list[str]], list[_Outcome]],
    completions: Sequence[str],
    solutions: Sequence[Solution],
) -> list[list[_Outcome]]:
    """Calls the function once for all pairs of completion and solution. Returns the outcomes grouped by completion."""
    counts = _counts(solutions)
    golds = [gold for s in solutions for gold in ([s] if isinstance(s, str) else s)]
    outcomes = function(_repeated(completions, counts), golds)
    ends = list(accumulate(counts))
    return [outcomes[end - count : end] for end, count in zip(ends, counts, strict=True)]


def _together(group: Sequence[Judgement], solution: Solution) -> Judgement:
    if isinstance(solution, str):
        return group[0]
    decided = [one for one in group if one.correct is not None]
    right = next((one for one in decided if one.correct), None)
    if right is not None:
        return replace(right, vote=_RIGHT + _cut(" | ".join(solution)))
    if not decided:
        return group[0]
    failed = next((one for one in decided if one.outcome != "ok"), decided[0])
    if failed.vote is not None and failed.vote.startswith(_RIGHT):
        failed = replace(failed, vote=f"{failed.vote} (wrong)")
    if len(solution) == 1 or failed.status != "judged":
        return failed
    return replace(failed, reason=f"{failed.reason} It matches none of the {len(solution)} solutions.")
