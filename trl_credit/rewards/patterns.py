"""Where a completion states its answer, if not in a box. An option of the reward `judged` and of the evaluation."""

import functools
import re

from .._util.text import nearest


# Linear in the length of the text: an unclosed tag ends its attempt at the next one
ANSWER_PATTERNS = {
    "answer_tag": r"(?s)<answer>((?:(?!</?answer>).)*)</answer>",
    "gsm8k": r"####[ \t]*([^\n]+)",
}
_NAME = re.compile(r"[A-Za-z][\w-]*")


@functools.lru_cache(maxsize=64)
def answer_regex(pattern: str) -> re.Pattern:
    """Compiles an `answer_pattern`. Its last match in a completion is the answer.

    Args:
        pattern: A name in [`ANSWER_PATTERNS`] (`answer_tag`: `<answer>72</answer>`, `gsm8k`: `#### 72`), or a regular
            expression with one group.

    Raises:
        ValueError: Unknown name (the message suggests the nearest), invalid regular expression, or not one group.
    """
    if not isinstance(pattern, str):
        raise ValueError(f"`answer_pattern` must be text, got {pattern!r}.")
    if pattern in ANSWER_PATTERNS:
        return re.compile(ANSWER_PATTERNS[pattern])
    if _NAME.fullmatch(pattern):
        raise ValueError(
            f"`answer_pattern`: unknown name {pattern!r}. {nearest(pattern, ANSWER_PATTERNS)} "
            "Or give a regular expression with one group, the answer."
        )
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise ValueError(f"`answer_pattern` {pattern!r} is no regular expression: {error}.") from None
    if compiled.groups != 1:
        names = ", ".join(ANSWER_PATTERNS)
        raise ValueError(
            f"`answer_pattern` {pattern!r} must have one group, the answer; it has {compiled.groups}. Names: {names}."
        )
    return compiled
