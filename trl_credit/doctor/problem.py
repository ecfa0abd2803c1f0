"""Something that is wrong, and what mends it."""

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """Something that is wrong.

    Args:
        what: What, in one line.
        why: Why it matters.
        mend: The command that mends it, or what else to do.
        needed: Whether something that was asked for cannot work because of it.
    """

    what: str
    why: str
    mend: str
    needed: bool = False


def capitalized(text: str) -> str:
    """The text as the start of a sentence; paths, code and names such as vLLM stay as they are."""
    return text if re.match(r"\S*[/A-Z]", text) else text[0].upper() + text[1:]
