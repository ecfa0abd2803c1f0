"""Cuts a completion into segments, at whose ends it is valued."""

import re
from collections.abc import Sequence
from itertools import accumulate


STEP = "step"
# After a line break and the blank around it, after `;`, and after the end of a sentence: `.`, `!` or `?` and closing quotes
# and brackets, then blank; or their full-width forms. The point of 3.5 ends nothing
STEP_PATTERN = r"[.!?][\"')\]]*(?:\s*\n\s*|(?=\s))|[;。\uff01\uff1f](?:\s*\n\s*)?|[^\S\n]*\n\s*"


def check_every(every: int | str) -> int | str:
    """Returns `every` as [`segment_ends`] takes it; a number may be spelled as text, as on a command line.

    Raises:
        ValueError: It is neither a number from 1, nor `step`, nor a regular expression.
    """
    if isinstance(every, str) and re.fullmatch(r"[+-]?\d+", every.strip()):
        every = int(every)
    if isinstance(every, bool) or not isinstance(every, (int, str)) or every == "" or (every != STEP and every == 0):
        raise ValueError(f"`every` must be a number of tokens from 1, `step` or a regular expression, got {every!r}.")
    if isinstance(every, int):
        if every < 1:
            raise ValueError(f"`every` must be at least 1 token, got {every}.")
        return every
    try:
        re.compile(_pattern(every))
    except re.error as error:
        raise ValueError(
            f"`every` is no regular expression: {error}, in {every!r}. `step` is the usual one."
        ) from error
    return every


def _pattern(every: str) -> str:
    return STEP_PATTERN if every == STEP else every


def segment_ends(pieces: Sequence[str], every: int | str) -> list[int]:
    """Exclusive ends of the segments that a completion's T tokens are cut into: ascending, the last is T.

    Args:
        pieces: Text of each token, as of [`~trl_credit._util.tokens.token_pieces`].
        every: Number of tokens in a segment; `step`, for segments that end after a line break, a sentence or `;`
            ([`STEP_PATTERN`]); or a regular expression, whose matches end segments. A token that a match ends in belongs
            to the segment whole.

    Raises:
        ValueError: As [`check_every`].
    """
    every = check_every(every)
    total = len(pieces)
    if isinstance(every, int):
        return [*range(every, total, every), total] if total else []
    ends = list(accumulate(map(len, pieces)))  # in characters
    found, token = set(), 0
    for match in re.finditer(_pattern(every), "".join(pieces)):
        while token < total and ends[token] < match.end():
            token += 1
        if match.end() > match.start() and token < total:
            found.add(token + 1)
    return sorted(found | {total}) if total else []
