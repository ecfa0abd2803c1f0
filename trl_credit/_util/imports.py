"""Imports objects by dotted path or from a file."""

import difflib
import functools
import hashlib
import importlib
import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType
from typing import Any


# For modules loaded from a file: the path as it was first written
_FILES: dict[str, str] = {}


def is_dotted(text: str) -> bool:
    """True if a text is the path of an object rather than a plain name."""
    return any(sign in text for sign in (".", ":", os.sep))


def load_dotted(path: str) -> Any:
    """Loads the object at `package.module.name`, `package.module:name` or `FILE.py:name`.

    Modules and files may also be in the working directory.

    Raises:
        ImportError: The module or file does not exist, cannot be imported, or lacks the object (the message names the
            nearest).
    """
    place, colon, name = path.rpartition(":")
    if colon:
        module = _load_file(place) if _is_file(place) else _import(place)
        return _get(module, name, place)
    if _is_file(path):
        raise ImportError(f"{path!r} is a file: write {path}:NAME.")
    place, _, name = path.rpartition(".")
    try:
        module = _import(place)
    except ModuleNotFoundError as error:
        # There may be a class or object in between: `module.Class.method`
        outer, _, inner = place.rpartition(".")
        if not outer or error.name is None or not f"{place}.".startswith(f"{error.name}."):
            raise
        try:
            module = _import(outer)
        except ModuleNotFoundError:
            raise error from None
        place, name = outer, f"{inner}.{name}"
    return _get(module, name, place)


def dotted_path(cls: type) -> str:
    """The path from which `load_dotted` loads a class."""
    if cls.__module__ in _FILES:
        return f"{_FILES[cls.__module__]}:{cls.__qualname__}"
    return f"{cls.__module__}.{cls.__qualname__}"


def _is_file(place: str) -> bool:
    return place.endswith(".py") or os.sep in place or place.startswith("~")


def _get(module: ModuleType, name: str, place: str) -> Any:
    try:
        return functools.reduce(getattr, name.split("."), module)
    except AttributeError:
        known = [known for known in vars(module) if not known.startswith("_")]
        close = difflib.get_close_matches(name, known, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ImportError(f"{place!r} has no {name!r}.{hint}") from None


def _import(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise ImportError(f"{name!r} is not a module name.")
    return _executed(os.getcwd(), name, lambda: importlib.import_module(name))


def _load_file(place: str) -> ModuleType:
    file = Path(place).expanduser().resolve()
    if not file.is_file():
        raise ImportError(f"there is no file {place!r} (looked from {Path.cwd()}).")
    # Not the file's own name, which a module in another folder may share
    name = f"_trl_credit_{file.stem}_{hashlib.sha256(str(file).encode()).hexdigest()[:8]}"
    if name in sys.modules:
        return sys.modules[name]

    def execute() -> ModuleType:
        spec = importlib.util.spec_from_file_location(name, file)
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        _FILES[name] = place
        try:
            spec.loader.exec_module(module)
        except BaseException:
            del sys.modules[name], _FILES[name]
            raise
        return module

    if file.suffix != ".py":
        raise ImportError(f"{place!r} is not a Python file.")
    return _executed(str(file.parent), place, execute)


def _executed(folder: str, place: str, load) -> ModuleType:
    """Loads a module so that it can import its neighbours in `folder`, also later, when its functions are called."""
    sys.path.insert(0, folder)
    try:
        return load()
    except ImportError:
        raise
    except (Exception, SystemExit) as error:  # a script without a `__main__` guard may exit
        message = " ".join(str(error).split())
        raise ImportError(f"{place!r} cannot be imported: {type(error).__name__}: {message}") from error
    finally:
        if folder in sys.path:
            sys.path.remove(folder)
        if folder not in sys.path:
            sys.path.append(folder)  # last, so that it hides no other module
