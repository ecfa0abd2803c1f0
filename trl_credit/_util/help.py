"""How `--help` shows a command's description."""

import argparse
import re
import textwrap


class Paragraphs(argparse.HelpFormatter):
    """Fills each paragraph to the terminal's width. Indented ones, such as commands, keep their lines."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = [part.strip("\n") for part in re.split(r"\n[ \t]*\n", text) if part.strip()]
        return "\n\n".join(
            textwrap.indent(part, indent)
            if all(line.startswith("    ") for line in part.splitlines())
            else super(Paragraphs, self)._fill_text(part, width, indent)
            for part in paragraphs
        )


class ParagraphsAndDefaults(Paragraphs, argparse.ArgumentDefaultsHelpFormatter):
    """Shows the options' defaults, too, and what `--no_NAME` does, to which transformers gives the help of `--NAME`."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        option = next(iter(action.option_strings), "")
        if option.startswith("--no_") and isinstance(action, argparse._StoreFalseAction):
            return f"Switches `--{option.removeprefix('--no_')}` off."
        return super()._get_help_string(action)
