"""The text of a completion that rewards and evaluation judge: with the thinking tag in front that its prompt opened.

Chat templates of R1 distillations and of Qwen3's thinking models end in `<think>`, so the completion starts within the
thought and has only the closing tag. Without the opening tag, a thought that never ends would read as an answer.
"""

from collections.abc import Sequence
from typing import Any

from .judge import THINKING_TAGS


# Keyword argument for reward functions that ask for it: for each completion, the tag that its prompt opened
OPENED_TAGS = "opened_tags"
# Message fields in which TRL and transformers put a parsed thought
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def opened_tag(prompt: str, thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS) -> str:
    """The thinking tag that a prompt leaves open for the completion, or "".

    Args:
        prompt: The prompt as the model reads it: plain text, or messages rendered with the generation prompt.
        thinking_tags: Pairs of opening and closing tag.
    """
    end = prompt.rstrip()
    return next((tag for tag, _ in thinking_tags if end.endswith(tag)), "")


def judged_text(completion: str | list[dict[str, Any]], opened: str = "") -> str:
    """The text that rewards judge: the completion or its last message, after the tag that its prompt opened.

    A message with its thought parsed into a separate field holds only the answer, so it gets no tag. In a conversation
    with tools, every model turn follows a generation prompt, so the last message starts within a thought too.

    Args:
        completion: Text or messages, as TRL passes them to reward functions.
        opened: The prompt's [`opened_tag`].
    """
    if isinstance(completion, str):
        return opened + completion
    message = completion[-1] if completion else {}
    content = message.get("content") or ""
    if not isinstance(content, str):
        content = "".join(part.get("text") or "" for part in content if part.get("type", "text") == "text")
    return content if any(message.get(key) is not None for key in _REASONING_KEYS) else opened + content


def judged_texts(completions: Sequence, opened_tags: Sequence[str] | None = None) -> list[str]:
    """[`judged_text`] of each completion. Without `opened_tags` (TRL's own trainer passes none), no tag is added."""
    return [
        judged_text(completion, opened)
        for completion, opened in zip(completions, opened_tags or [""] * len(completions), strict=True)
    ]
