"""Reads docs/algorithms.md."""

import re

from helpers import ROOT


TEXT = (ROOT / "docs" / "algorithms.md").read_text()

SECTIONS = dict(re.findall(r"^#+ ([^\n]+)\n(.*?)(?=^#+ |\Z)", TEXT, flags=re.MULTILINE | re.DOTALL))


def table(heading: str, number: int = 0) -> list[dict[str, str]]:
    """The rows of a table below a heading, by column."""
    rows = [
        [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]
        for block in re.findall(r"(?:^\|.*\|\n)+", SECTIONS[heading], flags=re.MULTILINE)
    ][number]
    return [dict(zip(rows[0], row, strict=True)) for row in rows[2:]]
