"""What mkdocs.yml needs beyond MkDocs: pages of the files outside docs/ that are linked, and references in docstrings."""

import ast
import json
import os
import re
from pathlib import Path

import griffe
from mkdocs.structure.files import File


ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
WITH_LINKS = {".md", ".ipynb"}
LANGUAGES = {".py": "python", ".yaml": "yaml", ".cff": "yaml", ".sh": "bash"}
LINK = re.compile(r"(?<=\]\()(?!\w+:)([^)#\s]+)")
REFERENCE = re.compile(r"\[`~?([\w.]+)`\](?!\()")
PARAMETER = re.compile(r"^(\s+\w+) \((\[?`[^\n]*?)(?:, \*optional\*)?(?:, defaults to [^\n]+)?\):$", re.MULTILINE)


def on_files(files, config):
    """Adds the files outside docs/ that pages link to, from page to page."""
    waiting = [DOCS / file.src_uri for file in files.documentation_pages()] + [ROOT / "CHANGELOG.md"]
    seen = set()
    while waiting:
        path = waiting.pop()
        if path in seen or not path.is_file():
            continue
        seen.add(path)
        if DOCS not in path.parents:
            files.append(File.generated(config, _uri(path), content=_content(path)))
        if path.suffix in WITH_LINKS:
            waiting += [_target(path, link) for link in LINK.findall(path.read_text("utf-8"))]
    config.extra["origins"] = {_uri(path): path for path in seen}
    return files


def on_page_markdown(markdown, page, config, files):
    """Turns links that hold between the files into links between the pages."""
    uri = page.file.src_uri
    path = config.extra["origins"][uri]

    def follow(link):
        target = _target(path, link[1])
        return os.path.relpath(_uri(target), os.path.dirname(uri) or ".") if target.is_file() else link[1]

    return LINK.sub(follow, markdown) if path.suffix in WITH_LINKS else markdown


def _target(path, link):
    return Path(os.path.normpath(path.parent / link))


def _uri(path):
    """The name of a file's page: from docs/ if it lies there, else from the repository's root."""
    if DOCS in path.parents:
        return path.relative_to(DOCS).as_posix()
    if path == ROOT / "README.md":
        return "readme.md"  # README.md would be the start page
    return path.relative_to(ROOT).as_posix() + ("" if path.suffix == ".md" else ".md")


def _content(path):
    text = path.read_text("utf-8")
    if path.suffix == ".md":
        return text
    if path.suffix == ".ipynb":
        cells = [(cell["cell_type"], "".join(cell["source"])) for cell in json.loads(text)["cells"]]
        return "\n\n".join(source if kind == "markdown" else _code(source, "python") for kind, source in cells)
    return f"# {path.relative_to(ROOT)}\n\n{_code(text, LANGUAGES.get(path.suffix, 'text'))}"


def _code(text, language):
    return f"~~~~~~ {language}\n{text}\n~~~~~~\n"


class TRLDocstrings(griffe.Extension):
    """Reads TRL's notation in docstrings: references such as [`CreditMethod`], and types of parameters in backticks."""

    def on_attribute(self, *, attr, **kwargs):
        """Gives a field of `_option(default, help)` its help as docstring."""
        if isinstance(attr.value, griffe.ExprCall) and str(attr.value.function) == "_option":
            default, text = attr.value.arguments[:2]
            attr.value, attr.docstring = default, griffe.Docstring(_literal(str(text)), parent=attr)

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            text = PARAMETER.sub(lambda found: f"{found[1]} ({_type(found[2])}):", obj.docstring.value)
            obj.docstring.value = REFERENCE.sub(lambda found: _reference(obj, found[1]), text)


def _literal(text):
    """The text of a string; of an f-string, which only the program can fill in, what stands before the first colon."""
    return text.lstrip("f'\"").split(":")[0] + "." if text.startswith("f") else ast.literal_eval(text)


def _type(text):
    return REFERENCE.sub(r"\1", text).replace("`", "").replace(" or ", " | ")


def _reference(obj, name):
    """A link if the site documents what is named, else the name alone."""
    try:
        identifier = obj.resolve(name)
    except griffe.NameResolutionError:
        identifier = name
    return f'<autoref optional identifier="{identifier}"><code>{name.rpartition(".")[2]}</code></autoref>'
