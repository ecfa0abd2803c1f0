"""The judge as a scorer for [inspect_ai](https://inspect.aisi.org.uk), with the verdicts of `trl-credit eval`.

    from inspect_ai import Task
    from trl_credit.evaluation.inspect_ai import judged

    Task(dataset=..., solver=..., scorer=judged())

Needs `pip install inspect-ai`, which asks for older versions of some packages than `constraints.txt` pins.
"""

import asyncio
import math
from collections.abc import Callable
from typing import Any

from ..rewards.patterns import answer_regex
from ..rewards.several import as_solution, judge_any


try:
    from inspect_ai.scorer import CORRECT, INCORRECT, Score, accuracy, scorer, stderr
except ImportError as error:
    raise ImportError(f"the inspect_ai scorer needs inspect_ai: pip install inspect-ai ({error})") from error


@scorer(metrics=[accuracy(), stderr()])
def judged(answer_pattern: str | None = None) -> Callable[..., Any]:
    """Scores a completion against the sample's target; any of several targets may match.

    A target that nothing can be verified against leaves its sample unscored (NaN), as `trl-credit eval` leaves out its
    problem. Thinking before a closing tag is not read.

    Args:
        answer_pattern: Name of a pattern or regular expression that finds the answer, as in `EvalConfig`; by default
            the last box or final line.

    Raises:
        ValueError: The pattern does not compile or has no group.
    """
    if answer_pattern is not None:
        answer_regex(answer_pattern)

    async def score(state: Any, target: Any) -> Score:
        gold = as_solution(list(target)) if len(target) > 1 else target[0]
        # Verification waits for a process of its own
        (verdict,) = await asyncio.to_thread(
            judge_any, [state.output.completion], [gold], answer_pattern=answer_pattern
        )
        value = math.nan if verdict.correct is None else CORRECT if verdict.correct else INCORRECT
        return Score(value=value, answer=verdict.answer, explanation=verdict.reason)

    return score
