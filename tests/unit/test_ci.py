"""When CI runs the tests with vLLM."""

import os
import shutil
import subprocess

import pytest
from helpers import ROOT


IDENTITY = ["-c", "user.name=x", "-c", "user.email=x@example.com"]


def git(folder, *arguments):
    subprocess.run(["git", "-C", folder, *IDENTITY, *arguments], check=True, capture_output=True)


def commit(folder, *paths):
    for path in paths:
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        with (folder / path).open("a") as file:
            file.write("x\n")
    git(folder, "add", "--all")
    git(folder, "commit", "--message", "x")


def needs_vllm(folder, **variables):
    environment = {name: value for name, value in os.environ.items() if name != "CI_VLLM"} | variables
    done = subprocess.run([folder / ".ci" / "needs_vllm"], env=environment, capture_output=True, text=True, check=False)
    assert not done.stderr
    assert done.stdout.count("\n") == 1
    assert ("skipped" in done.stdout) == (done.returncode == 1)
    return done.returncode == 0


@pytest.fixture
def project(tmp_path):
    """A commit on main."""
    folder = tmp_path / "project"
    (folder / ".ci").mkdir(parents=True)
    shutil.copy(ROOT / ".ci" / "needs_vllm", folder / ".ci")
    git(folder, "init", "--initial-branch", "main")
    commit(folder, "README.md", "trl_credit/batching.py")
    return folder


def test_on_main_it_runs_if_asked_for(project):
    assert not needs_vllm(project)
    assert needs_vllm(project, CI_VLLM="1")
    git(project, "checkout", "--detach")
    assert not needs_vllm(project)


@pytest.mark.parametrize("path", ["trl_credit/batching.py", "tests/with_vllm/x.py", "constraints-dev.txt", ".ci/run"])
def test_on_a_branch_all_its_commits_decide(project, path):
    git(project, "checkout", "-b", "branch")
    commit(project, "docs/x.md")
    assert not needs_vllm(project)
    commit(project, path)
    commit(project, "docs/x.md")
    assert needs_vllm(project)


def test_where_git_knows_no_commit_of_main_it_runs(project):
    git(project, "branch", "--move", "main", "branch")
    assert needs_vllm(project)
