import importlib
import os
import sys
from typing import Any


def load_dotted(path: str) -> Any:
    """The object at a dotted path, importable from the working directory too.

    Raises:
        ImportError: No such module, or the module has no such object.
    """
    module, _, name = path.rpartition(".")
    sys.path.insert(0, os.getcwd())
    try:
        return getattr(importlib.import_module(module), name)
    except AttributeError as error:
        raise ImportError(str(error)) from error
    finally:
        sys.path.remove(os.getcwd())
