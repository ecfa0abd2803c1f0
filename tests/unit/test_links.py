"""Links between the Markdown files: the targets exist, with their headings, as GitHub shows them."""

import re
from pathlib import Path

import pytest


ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted(
    [
        *ROOT.glob("*.md"),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "benchmarks" / "README.md",
        ROOT / "recipes" / "cluster" / "README.md",
    ]
)


def text_of(path: Path) -> str:
    return re.sub(r"^```.*?^```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL | re.MULTILINE)


def anchors(path: Path) -> set[str]:
    """GitHub's: lower case, without punctuation, spaces as hyphens."""
    headings = re.findall(r"^#+ (.+)$", text_of(path), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links(page):
    for target, anchor in re.findall(r"\]\((?!\w+:)([^)#\s]*)(?:#([^)\s]+))?\)", text_of(page)):
        path = page.parent / target if target else page
        assert path.exists(), target
        assert path.resolve().is_relative_to(ROOT.resolve()), target
        assert not anchor or anchor in anchors(path), f"{target}#{anchor}"
