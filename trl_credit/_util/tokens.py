"""Texts of single tokens."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING


if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def token_pieces(tokenizer: PreTrainedTokenizerBase, ids: Sequence[int]) -> list[str]:
    """Splits token ids into the text that each token adds, including special tokens.

    If a character is spread over several tokens, those before the last show their bytes, such as `<0xE4>`, or U+FFFD if
    the vocabulary does not tell them.
    """
    pieces: list[str] = []
    # Decode with the previous tokens, because a token's text may depend on its left neighbour (a leading space)
    start = read = 0
    before = ""
    special = set(tokenizer.all_special_ids)

    def decode(part: Sequence[int]) -> str:
        return tokenizer.decode(part, skip_special_tokens=False, clean_up_tokenization_spaces=False)

    for end in range(1, len(ids) + 1):
        if ids[end - 1] in special:
            pieces.append(tokenizer.convert_ids_to_tokens(int(ids[end - 1])))
            start, read, before = end, end, ""
            continue
        text = decode(ids[start:end])
        # A character has at most four bytes: if still incomplete by then, this is not UTF-8
        if text.endswith("\ufffd") and end - read < 4 and len(text) > len(before):
            pieces.append(_bytes_of(tokenizer, int(ids[end - 1])))
            continue
        pieces.append(text[len(before) :] if len(text) >= len(before) else decode(ids[end - 1 : end]))
        start, read, before = end - 1, end, decode(ids[end - 1 : end])
        if before.startswith("\ufffd"):  # it completes a character, so it cannot be decoded alone
            start, before = end, ""
    return pieces


def _bytes_of(tokenizer: PreTrainedTokenizerBase, token_id: int) -> str:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    token = tokenizer.convert_ids_to_tokens(token_id)
    if token is None or token.startswith("<0x"):
        return token or "\ufffd"
    values = {character: value for value, character in bytes_to_unicode().items()}
    if not all(character in values for character in token):
        return "\ufffd"
    return "".join(f"<0x{values[character]:02X}>" for character in token)
