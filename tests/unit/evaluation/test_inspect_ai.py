"""The judge as an inspect_ai scorer. inspect_ai is faked, because its dependencies exclude versions pinned here."""

import asyncio
import importlib
import math
import sys
import types
from dataclasses import dataclass

import pytest


MODULE = "trl_credit.evaluation.inspect_ai"


@dataclass
class Score:
    value: object
    answer: str | None = None
    explanation: str | None = None


@pytest.fixture
def judged(monkeypatch):
    scorer = types.ModuleType("inspect_ai.scorer")
    scorer.CORRECT, scorer.INCORRECT, scorer.Score = "C", "I", Score
    scorer.accuracy = scorer.stderr = lambda: None
    scorer.scorer = lambda metrics: lambda function: function
    monkeypatch.setitem(sys.modules, "inspect_ai", types.ModuleType("inspect_ai"))
    monkeypatch.setitem(sys.modules, "inspect_ai.scorer", scorer)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    yield importlib.import_module(MODULE).judged
    sys.modules.pop(MODULE, None)


def score(scorer, completion, *targets):
    state = types.SimpleNamespace(output=types.SimpleNamespace(completion=completion))
    return asyncio.run(scorer(state, targets))


def test_verdicts(judged):
    scorer = judged()
    assert score(scorer, r"so \boxed{4}", "4").value == "C"
    wrong = score(scorer, r"so \boxed{5}", "4")
    assert (wrong.value, wrong.answer) == ("I", "5")
    assert "not 4" in wrong.explanation
    assert score(scorer, "nothing", "4").value == "I"
    assert score(scorer, r"\boxed{3}", "2", "3").value == "C"
    assert score(scorer, r"\boxed{9} perhaps</think> \boxed{4}", "4").value == "C"


def test_a_target_that_nothing_can_be_verified_against_is_unscored(judged):
    assert math.isnan(score(judged(), r"\boxed{4}", "").value)


def test_patterns(judged):
    assert score(judged(answer_pattern="gsm8k"), "#### 4", "4").value == "C"
    with pytest.raises(ValueError, match="Did you mean 'gsm8k'"):
        judged(answer_pattern="gsm9k")


def test_without_inspect_ai(monkeypatch):
    monkeypatch.setitem(sys.modules, "inspect_ai.scorer", None)
    monkeypatch.delitem(sys.modules, MODULE, raising=False)
    with pytest.raises(ImportError, match="pip install inspect-ai"):
        importlib.import_module(MODULE)
