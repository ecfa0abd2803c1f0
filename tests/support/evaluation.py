"""An evaluation backend that needs no model."""

import json
import random

import pytest

from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.backends.base import Backend, Generation


class FakeBackend(Backend):
    """Answers from the sample's seed alone; may stop in the middle."""

    name = "fake"

    def __init__(self, model="A", rate=0.4, order=None, stop_after=None, action=None):
        self.model, self.rate, self.order, self.stop_after, self.action = model, rate, order, stop_after, action
        self.made = []

    def identity(self):
        return {"model": self.model}

    def generate(self, requests, sampling, emit):
        requests = list(requests)
        if self.order is not None:
            random.Random(self.order).shuffle(requests)
        for number, request in enumerate(requests):
            if number == self.stop_after:
                self.action()
            emit(request, self.answer(request))
            self.made.append(request.key)

    def answer(self, request):
        rng = random.Random(request.seed)
        question = request.prompt if isinstance(request.prompt, str) else request.prompt[-1]["content"]
        right = int(question.partition("+")[0]) + int(question.partition("+")[2].split()[0])
        kind = rng.random()
        if kind < self.rate:
            text = f"I add them.\nIt is \\boxed{{{right}}}."
        elif kind < 0.8:
            text = f"\\boxed{{{right + rng.choice([-1, 1, 10])}}}"
        else:
            text = rng.choice(["", "I do not know \ud800"])
        return Generation(text, 5 + len(text), "length" if kind > 0.9 else "stop")


@pytest.fixture
def sums(tmp_path):
    rows = [{"problem": f"{i}+{i + 1} =", "answer": str(2 * i + 1)} for i in range(6)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(sums, tmp_path, **settings):
    defaults = {"model": "m", "tasks": [sums], "n": 5, "output_dir": str(tmp_path / "run"), "report": False}
    return EvalConfig(**{**defaults, **settings})


def fail():
    raise RuntimeError("the power went out")
