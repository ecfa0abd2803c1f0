"""What `mkdocs.yml` needs beyond MkDocs: links out of docs/, and the references of docstrings."""

import os
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".sh": "bash"}


def on_files(files, config):
    """Makes pages of the files outside docs/ that pages link to, and of those that the navigation names."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()]
    waiting += [ROOT / name for name in re.findall(r": (\S+\.md)", (ROOT / "mkdocs.yml").read_text("utf-8"))]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        if not files.get_file_from_path(_uri(path)):
            files.append(File.generated(config, _uri(path), content=_content(path)))
        if path.suffix == ".md":
            waiting += [_target(path, link) for link in LINK.findall(path.read_text("utf-8"))]
    return files


def on_page_markdown(markdown, page, config, files):
    """Leads the links of a page, which are right on the disk, to the pages of the site."""
    path = DOCS / page.file.src_uri
    path = path if path.is_file() else ROOT / page.file.src_uri
    folder = Path(page.file.src_uri).parent

    def follow(link):
        target = _target(path, link[1])
        return os.path.relpath(_uri(target), folder) if target.is_file() else link[1]

    return LINK.sub(follow, markdown)


def _target(path, link):
    return Path(os.path.normpath(path.parent / link))


def _uri(path):
    """The name of a file's page: from docs/ for what lies there, else from the repository's root."""
    if path == ROOT / "README.md":
        return "index.md"
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    return path.relative_to(ROOT).as_posix() + ("" if path.suffix == ".md" else ".md")


def _content(path):
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text
    return f"# {path.relative_to(ROOT)}\n\n~~~~~~ {LANGUAGES.get(path.suffix, 'text')}\n{text}\n~~~~~~\n"


class References(griffe.Extension):
    """Makes links of references such as [`CreditMethod`], where the site shows what they name."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = re.sub(
                r"\[`~?([\w.]+)`\](?!\()", lambda found: _reference(obj, found[1]), obj.docstring.value
            )


def _reference(obj, name):
    shown = f"<code>{name.rpartition('.')[2]}</code>"
    try:
        return f'<autoref optional identifier="{obj.resolve(name)}">{shown}</autoref>'
    except griffe.NameResolutionError:
        return f'<autoref optional identifier="{name}">{shown}</autoref>'
