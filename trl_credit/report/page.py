"""Shared by all reports: autoescaped templates, data embedded as inert JSON, a strict content security policy.

Reports show text that a model wrote, so none of it is trusted. Text reaches the page only through a template, which
escapes it, or as JSON in a `<script type="application/json">`, which the page's own script shows with `textContent`.
The policy allows that one script and one style sheet, by hash, and no requests.
"""

import base64
import hashlib
import json
import math
import re
from collections.abc import Mapping
from numbers import Real
from pathlib import Path
from typing import Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, Undefined
from markupsafe import Markup

from .._util.files import write_atomically


MISSING = "\u2013"
# Characters that a browser would drop, obey or not draw: C0 and C1 controls, line separators, direction marks
_CONTROLS = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u061c\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_SURROGATES = re.compile("[\ud800-\udfff]")


def clean(value: Any) -> Any:
    """Copies JSON-like data so that it can be written: lone surrogates become U+FFFD, NaN and infinities `None`."""
    if isinstance(value, str):
        return _SURROGATES.sub("\ufffd", value)
    if isinstance(value, Mapping):
        return {clean(str(key)): clean(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [clean(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def embed(data: Any) -> Markup:
    """JSON for a `<script type="application/json">`. No text in it can end the element or open a comment."""
    text = json.dumps(clean(data), ensure_ascii=False, separators=(",", ":"), allow_nan=False)
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def visible(text: str) -> str:
    """Spells out control characters and direction marks, like `putText` in base.js."""
    return _CONTROLS.sub(lambda match: f"[U+{ord(match[0]):04X}]", clean(text))


def finite(value: Any) -> bool:
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def percent(value: Any, digits: int = 1) -> str:
    return f"{100 * value:.{digits}f} %" if finite(value) else MISSING


def points(value: Any, digits: int = 1) -> str:
    """Formats a difference of two shares in percentage points, with its sign."""
    if not finite(value):
        return MISSING
    text = f"{abs(100 * value):.{digits}f}"
    # No sign if it rounds to zero
    return text if not float(text) else ("+" if value > 0 else "\u2212") + text


def count(value: Any) -> str:
    return f"{value:,.0f}" if finite(value) else MISSING


def duration(seconds: Any) -> str:
    if not finite(seconds):
        return MISSING
    if seconds < 120:
        return f"{seconds:.{1 if seconds < 10 else 0}f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 120 else f"{minutes // 60} h {minutes % 60} min"


def flatten(data: Any, prefix: str = "") -> list[tuple[str, str]]:
    """Flattens nested settings to rows such as `("sampling.temperature", "0.6")`."""
    if isinstance(data, Mapping) and data:
        return [row for key, item in data.items() for row in flatten(item, f"{prefix}.{key}" if prefix else str(key))]
    if isinstance(data, str):
        return [(prefix, data)]
    return [(prefix, MISSING if data is None else json.dumps(clean(data), ensure_ascii=False, default=str))]


def _finalize(value: Any) -> Any:
    """Applied to every value that a template prints, so that missing ones do not show as "None"."""
    if value is None or isinstance(value, Undefined):
        return MISSING
    if isinstance(value, str) and not isinstance(value, Markup):
        return visible(value)
    return value


def environment(package: str = "trl_credit.report") -> Environment:
    """Jinja environment with the templates of a package, falling back to this package's."""
    result = Environment(
        loader=ChoiceLoader([PackageLoader(package), PackageLoader("trl_credit.report")]),
        autoescape=True,
        finalize=_finalize,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    result.filters.update(percent=percent, points=points, count=count, duration=duration, flatten=flatten, embed=embed)
    return result


def write_page(
    path: Path, package: str, name: str, *, scripted: bool = True, images: bool = False, **context: Any
) -> None:
    """Writes a package's `templates/NAME.html` with the style sheets and scripts of `base` and NAME, atomically.

    Iterators in the context are consumed while writing, so a large report is never held as one string.

    Args:
        path: The file.
        package: The package that has the templates.
        name: NAME.
        scripted: False for a page without scripts, whose policy forbids them.
        images: True if the page shows images, embedded as data URIs.
        **context: Values for the template.
    """
    jinja = environment(package)

    def sources(suffix: str) -> tuple[Markup, str]:
        texts = [jinja.loader.get_source(jinja, f"{part}.{suffix}")[0] for part in ("base", name)]
        text = "\n" + "\n".join(texts).replace("\r\n", "\n")
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        return Markup(text), f"'sha256-{digest}'"

    style, style_hash = sources("css")
    script, script_hash = sources("js") if scripted else (None, "'none'")
    policy = (
        f"default-src 'none'; style-src {style_hash}; script-src {script_hash}; base-uri 'none'; form-action 'none'"
    )
    if images:
        policy += "; img-src data:"
    chunks = jinja.get_template(f"{name}.html").generate(style=style, script=script, policy=Markup(policy), **context)
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, chunks)
