"""From facts and needs to problems: what is wrong, why it matters, and the command that mends it."""

import re
import shlex
import sys
from collections.abc import Sequence
from dataclasses import replace
from importlib.util import find_spec

from . import of_machine, of_packages, of_recipe
from .facts import Facts
from .hub import Place
from .needs import Needs
from .of_recipe import problems_of_place
from .problem import Problem


# Also their order in the report
RULES = (*of_packages.RULES, *of_machine.RULES, *of_recipe.RULES)


def problems(facts: Facts, needs: Needs, places: Sequence[Place] = ()) -> list[Problem]:
    """Everything that is wrong, what stands in the way first.

    Args:
        facts: The environment.
        needs: What was asked for.
        places: Where its models and data are.
    """
    found = [problem for rule in RULES for problem in rule(facts, needs)]
    found += [problem for place in places for problem in problems_of_place(place, facts)]
    found = [replace(problem, mend=_of_this_python(problem.mend)) for problem in found]
    return sorted(found, key=lambda problem: not problem.needed)


def _of_this_python(mend: str) -> str:
    """A command of `pip` as one that installs into this environment, whatever is on the path."""
    python = shlex.quote(sys.executable)
    if find_spec("pip") is not None:
        return re.sub(r"\bpip (install|uninstall)\b", lambda match: f"{python} -m {match[0]}", mend)
    return re.sub(r"\bpip (install|uninstall)\b", lambda match: f"uv {match[0]} --python {python}", mend)
