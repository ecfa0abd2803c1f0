"""Modules that a fresh interpreter loads. The layers are in pyproject.toml, and `make lint` checks them."""

import ast
import importlib
import subprocess
import sys
import typing
from pathlib import Path

import pytest

import trl_credit
from trl_credit._util.moved import MOVED, MOVED_NAMES


HEAVY = ("torch", "trl", "transformers", "datasets", "accelerate", "peft")


def loaded(code: str) -> set[str]:
    """Modules of a fresh interpreter after some code."""
    script = f"{code}\nimport sys\nprint('MODULES', *sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return set(done.stdout.rsplit("MODULES", 1)[1].split())


def command(*words: str) -> str:
    lines = ("import contextlib", "from trl_credit.cli import main", "with contextlib.suppress(SystemExit):")
    return "\n".join((*lines, f"    main({list(words)})"))


@pytest.mark.parametrize(
    "code",
    [
        "import trl_credit",
        "import trl_credit._trl",
        "import trl_credit.evaluation",
        "import trl_credit.methods",
        "import trl_credit.records.record",
        "import trl_credit.statistics.paired, trl_credit.statistics.repeated",
        command("--version"),
        command("--help"),
        command("methods"),
        command("methods", "gcpo"),
        command("methods", "gpco"),
        "import trl_credit.doctor.cli",
        command("doctor", "--help"),
        command("doctor", "recipes/quickstart.yaml", "--needs", "nothing"),
        command("train", "--config", "no/such/recipe.yaml"),
        command("train", "--credit", "gpco"),
        command("train", "--credit", '{"method": "gcpo", "sharpnes": 3}'),
        command("train", "--config", "recipes/quickstart.yaml", "--learning_rat", "1"),
        command("inspect", "recipes/quickstart.yaml", "--methods", "gcpoo"),
        command("compare", "recipes/quickstart.yaml", "--methods", "gcpoo"),
        command("plan", "recipes/quickstart.yaml", "--gpu", "h10"),
        command("plan", "recipes/quickstart.yaml", "--gpuz", "8"),
        command("compare", "recipes/quickstart.yaml", "--methods", "gcpo", "--tune", "learning_rat=1,2"),
        command("compare", "--config", "recipes/quickstart.yaml", "--methods", "gcpo", "--seedz", "1"),
    ],
    ids=lambda code: code.splitlines()[-1].strip(),
)
def test_light(code):
    assert loaded(code) & set(HEAVY) == set()


@pytest.mark.slow
def test_the_evaluation_loads_no_trainer():
    modules = loaded("import trl_credit.evaluation.run, trl_credit.evaluation.cli, trl_credit.evaluation.tasks")
    assert {"trl_credit.trainer.grpo", "trl_credit.methods.registry", "trl.trainer.grpo_trainer"} & modules == set()


@pytest.mark.parametrize(
    "package", [f"trl_credit{name}" for name in ("", ".trainer", ".methods", ".evaluation", ".extras")]
)
def test_lazy_names_are_those_that_type_checkers_see(package):
    module = importlib.import_module(package)
    tree = ast.parse(Path(module.__file__).read_text())
    (block,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {alias.name: "." * node.level + (node.module or "") for node in block.body for alias in node.names}
    eager = {name for name in module.__all__ if name not in seen}
    assert set(seen) == set(module.__all__) - eager
    assert eager <= {"TABLE", "__version__"}
    for name, home in seen.items():
        assert getattr(module, name) is getattr(importlib.import_module(home, package), name)
        assert name in dir(module)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("old", MOVED)
def test_old_modules_work_with_a_warning(old):
    sys.modules.pop(old, None)
    with pytest.warns(FutureWarning, match=f"`{old}` has moved to `{MOVED[old][0]}`"):
        module = importlib.import_module(old)
    for home in map(importlib.import_module, MOVED[old]):
        name = next(name for name, value in vars(home).items() if getattr(value, "__module__", "") == home.__name__)
        assert getattr(module, name) is getattr(home, name)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = module.nothing


@pytest.mark.parametrize("module", MOVED_NAMES)
def test_old_names_work_with_a_warning(module):
    here = importlib.import_module(module)
    for name, home in MOVED_NAMES[module].items():
        if name in vars(here):  # it imports it still
            continue
        home, _, new = home.partition(":")
        new = new or name
        with pytest.warns(FutureWarning, match=f"`{module}.{name}` has moved to `{home}.{new}`"):
            assert getattr(here, name) is getattr(importlib.import_module(home), new)
    with pytest.raises(AttributeError, match="has no attribute 'nothing'"):
        _ = here.nothing


def test_annotations_resolve():
    """Protocols and dataclasses whose modules import types for type checkers only."""
    for name in ("CreditGRPOConfig", "CreditInputs", "PolicyForward"):
        assert typing.get_type_hints(getattr(trl_credit, name))
