"""Recipes and reward functions in files."""

import textwrap

import pytest

from trl_credit.recipe.recipe import Recipe


BASE = "output_dir: out\nuse_cpu: true\nbf16: false\n"


def recipe(tmp_path, text, *words, base=BASE):
    path = tmp_path / "recipe.yaml"
    path.write_text(base + textwrap.dedent(text))
    return Recipe.read(["--config", str(path), *words]).fields()


# Paths to one's own code


MODULE = """
import functools
import beside

def unwrapped(function):
    def inner(*args, **kwargs):
        return function(*args, **kwargs)
    return inner

@unwrapped
def decorated(completions, **kwargs):
    return [0.5] * len(completions)

def plain(completions, factor=1.0, **kwargs):
    return [factor] * len(completions)

async def slow(completions, **kwargs):
    return [1.0] * len(completions)

class Reward:
    def __init__(self, factor=2.0, **kwargs):
        self.factor = factor
    def __call__(self, completions, **kwargs):
        return [self.factor] * len(completions)
    def method(self, completions, **kwargs):
        return [4.0] * len(completions)

reward = Reward(3.0)
part = functools.partial(plain, factor=5.0)

def make(factor):
    return functools.partial(plain, factor=factor)

def make_anything(**options):
    return functools.partial(plain, **options)

def no_reward():
    return 3

number = 3
"""


@pytest.fixture
def own_code(tmp_path, monkeypatch):
    (tmp_path / "own_rewards.py").write_text(MODULE)
    (tmp_path / "beside.py").write_text("")
    (tmp_path / "broken.py").write_text("x = (")
    monkeypatch.chdir(tmp_path)
    return tmp_path
