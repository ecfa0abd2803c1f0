"""A command line's words, before they are parsed."""

from collections.abc import Sequence


def with_file_named(words: Sequence[str], option: str = "--config") -> list[str]:
    """The words, with `option` before a YAML file that stands first: `trl-credit train recipe.yaml`."""
    stands_first = bool(words) and words[0].endswith((".yaml", ".yml")) and not words[0].startswith("-")
    return [option, *words] if stands_first else list(words)
