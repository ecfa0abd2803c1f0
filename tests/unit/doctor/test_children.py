"""Children that hang, crash, print or fail never harm the one that asks."""

import os
import time

import pytest

from trl_credit.doctor.children import ask, run


def test_an_answer():
    assert ask("imported", "json:loads").error is None
    assert ask("imported", "packaging").value.count(".") >= 1


def test_an_error_names_itself_and_its_root():
    answer = ask("imported", "json:nothing")
    assert answer.error.startswith("AttributeError: module 'json' has no attribute 'nothing'")
    answer = ask("imported", "no_such_module_anywhere")
    assert answer.error == "ModuleNotFoundError: No module named 'no_such_module_anywhere'"
    assert answer.causes == (answer.error,)


@pytest.fixture
def module(tmp_path, monkeypatch):
    """Writes a module that children find."""

    def write(text):
        (tmp_path / "module_of_the_test.py").write_text(text)
        monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")]))
        return "module_of_the_test"

    return write


def test_what_a_module_prints_is_not_the_answer(module):
    name = module("print('{\"value\": 1}')\nimport os\nos.write(1, b'loud')\n__version__ = '2.0'")
    assert ask("imported", name).value == "2.0"


def test_a_chain_of_causes(module):
    name = module(
        "try:\n    raise RuntimeError('operator torchvision::nms\\ndoes not exist')\n"
        "except RuntimeError as error:\n    raise ImportError('Failed to import') from error"
    )
    answer = ask("imported", name)
    assert answer.causes == ("ImportError: Failed to import", "RuntimeError: operator torchvision::nms does not exist")
    assert answer.error == f"{answer.causes[0]} (from {answer.causes[1]})"


def test_a_crash(module):
    assert ask("imported", module("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")).error == (
        "the process was ended by SIGSEGV"
    )


def test_an_exit(module):
    assert ask("imported", module("raise SystemExit('not here')")).error == "SystemExit: not here"
    assert ask("imported", module("import os\nos._exit(0)")).error == "the process ended without an answer"


def test_a_hang_with_a_child_of_its_own(module, tmp_path):
    mark = tmp_path / "alive"
    code = f"import time, pathlib\\nwhile True:\\n    pathlib.Path({str(mark)!r}).touch()\\n    time.sleep(0.05)"
    name = module(f'import subprocess, sys\nsubprocess.run([sys.executable, "-c", "{code}"])')
    started = time.monotonic()
    answer = ask("imported", name, seconds=3)
    assert answer.error == "no answer after 3 s"
    assert answer.late
    assert time.monotonic() - started < 9
    assert mark.exists()
    mark.unlink()
    time.sleep(0.5)
    assert not mark.exists()


def test_a_folder_in_the_working_directory_is_not_a_package(tmp_path, monkeypatch):
    (tmp_path / "packaging.py").write_text("raise ValueError('not this one')")
    monkeypatch.chdir(tmp_path)
    assert ask("imported", "packaging.version").error is None


def test_programs():
    assert run(["no-such-program-anywhere"], 5).error
    assert run(["sh", "-c", "echo first; echo broken >&2; exit 3"], 5).error == "broken"
    assert run(["sh", "-c", "echo broken; echo badly; exit 3"], 5).error == "broken badly"
    assert run(["sh", "-c", "exit 3"], 5).error == "it ended with status 3"
    assert run(["echo", "13.0"], 5).value == "13.0\n"
