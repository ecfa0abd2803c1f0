"""One view of a completion for rewards and evaluation: its text, behind the thinking tag that its prompt has opened.

The chat templates of R1 distillations and of Qwen3's thinking models end in `<think>`, so that the completion starts within
the thought and has only the closing tag. Without the opening tag in front, a thought that never ends reads as an answer.
"""

from collections.abc import Sequence
from typing import Any

from .judge import THINKING_TAGS


# The keyword argument for reward functions that ask for it by name: for each completion, its prompt's opened tag
OPENED_TAGS = "opened_tags"
# Fields of a message in which TRL and transformers put a thought that they have parsed
_REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")


def opened_tag(prompt: str, thinking_tags: Sequence[tuple[str, str]] = THINKING_TAGS) -> str:
    """The thinking tag that a prompt leaves open for the completion, or an empty text.

    Args:
        prompt: As the model reads it: plain text, or messages rendered with the generation prompt.
        thinking_tags: Pairs of an opening and a closing tag.
    """
    end = prompt.rstrip()
    return next((tag for tag, _ in thinking_tags if end.endswith(tag)), "")


def judged_text(completion: str | list[dict[str, Any]], opened: str = "") -> str:
    """The text that rewards judge: of a conversation, the last message; behind the tag that the prompt opened.

    A message whose thought was parsed into a field of its own holds the answer alone, and gets no tag. In a conversation
    with tools every turn of the model follows a generation prompt, so the last one starts within a thought, too.

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
    """[`judged_text`] of each completion; without `opened_tags` (as from TRL's own trainer) no prompt has opened one."""
    return [
        judged_text(completion, opened)
        for completion, opened in zip(completions, opened_tags or [""] * len(completions), strict=True)
    ]
