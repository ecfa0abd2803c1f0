"""Reads the answers of OpenAI-compatible endpoints."""

from typing import Any

from .base import Generation


def retry_after(headers: Any) -> float:
    """Seconds that a server asks to wait, or 0."""
    try:
        seconds = float(headers.get("retry-after", 0))
    except ValueError:  # a date: use our own waits
        return 0.0
    return seconds if seconds > 0 else 0.0


def read_generation(answer: dict[str, Any]) -> Generation:
    """Reads the generation from an answer's JSON.

    Raises:
        ValueError, TypeError, KeyError, IndexError, AttributeError: A part is missing or malformed.
    """
    choice = answer["choices"][0]
    finish = choice["finish_reason"]
    if not isinstance(finish, str) or finish in ("abort", "error"):
        raise ValueError(f"finish_reason is {finish!r}")
    if "message" in choice:
        message = choice["message"]
        reasoning = message.get("reasoning_content") or message.get("reasoning") or ""
        # Servers write null for an empty completion, and omit the field next to reasoning or tool calls
        content = message.get("content") if reasoning or message.get("tool_calls") else message["content"]
        content = "" if content is None else content
    else:
        reasoning, content = "", choice["text"]
    if not isinstance(content, str) or not isinstance(reasoning, str):
        raise TypeError("the text is not a string")
    ids = choice.get("token_ids")
    if ids is not None and not (isinstance(ids, list) and all(type(i) is int for i in ids)):
        raise TypeError("the token ids are no whole numbers")
    if reasoning:
        closed = content or finish != "length"
        content = f"<think>{reasoning}{'</think>' if closed else ''}{content}"
    tokens = (answer.get("usage") or {}).get("completion_tokens")
    if tokens is not None and (isinstance(tokens, bool) or not isinstance(tokens, int) or tokens < 0):
        raise ValueError(f"completion_tokens is {tokens!r}")
    # Other reasons, such as a content filter, count as a normal end
    return Generation(
        text=content,
        tokens=tokens,
        finish="length" if finish == "length" else "stop",
        ids=None if ids is None else tuple(ids),
    )
