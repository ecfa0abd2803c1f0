"""Runs of `trl-credit eval`: settings, tasks, what is on disk, interruption, comparison."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from itertools import combinations
from pathlib import Path

import pytest
import yaml
from datasets import Dataset

from trl_credit._util.files import RunFolderError, differences, read_lines, write_atomically
from trl_credit.evaluation import EvalConfig, evaluate
from trl_credit.evaluation.backends.base import Backend, BackendError, Generation, SamplingSettings
from trl_credit.evaluation.cli import main
from trl_credit.evaluation.compare import compare_runs
from trl_credit.evaluation.presets import PRESETS
from trl_credit.evaluation.run import Interrupted, judge_again, judge_samples, make_backend, make_requests, sample_seed
from trl_credit.evaluation.store import RunFolder
from trl_credit.evaluation.tasks import TASKS, load_tasks
from trl_credit.evaluation.terminal import show


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
def data(tmp_path):
    rows = [{"problem": f"{i}+{i + 1} =", "answer": str(2 * i + 1)} for i in range(6)]
    path = tmp_path / "sums.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def config(data, tmp_path, **settings):
    defaults = {"model": "m", "tasks": [data], "n": 5, "output_dir": str(tmp_path / "run"), "report": False}
    return EvalConfig(**{**defaults, **settings})


# ---- settings


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"n": 0}, "`n` must be at least 1, got 0"),
        ({"n": True}, "`n` must be"),
        ({"limit": -1}, "`limit` must be"),
        ({"preset": "dapoo"}, "`preset`: unknown value 'dapoo'. Did you mean 'dapo'"),
        ({"backend": "vlm"}, "`backend`: unknown value 'vlm'. Did you mean 'vllm'"),
        ({"temperature": -0.1}, "`temperature` must be non-negative, got -0.1"),
        ({"temperature": float("nan")}, "`temperature` must be"),
        ({"top_p": 0.0}, "`top_p` must be above 0 and at most 1"),
        ({"top_k": 1.5}, "`top_k` must be a whole number"),
        ({"min_p": 2.0}, "`min_p` must be between 0 and 1"),
        ({"repetition_penalty": 0.0}, "`repetition_penalty` must be positive"),
        ({"max_tokens": 0}, "`max_tokens` must be at least 1, got 0"),
        ({"stop": [""]}, "`stop` must be"),
        ({"tasks": []}, "`tasks` must be"),
        ({"prompt_template": "Solve it."}, r"`prompt_template` must contain the slot \{problem\}"),
        ({"answer_pattern": "("}, "`answer_pattern` '\\(' is no regular expression"),
        ({"answer_pattern": "#"}, "must have one group"),
        ({"answer_pattern": "gsm8"}, "`answer_pattern`: unknown name 'gsm8'. Did you mean 'gsm8k'"),
        ({"plain_prompts": True, "system_prompt": "x"}, "no effect with `plain_prompts`"),
        ({"base_url": "http://x", "backend": "vllm"}, "`base_url` has no effect"),
        ({"backend": "server"}, "`backend: server` needs `base_url`"),
        ({"chat_template_kwargs": "{"}, "`chat_template_kwargs` is not valid JSON"),
        ({"vllm_kwargs": "[1]"}, "`vllm_kwargs` must be a mapping"),
        ({"recipe": "no.yaml"}, "`recipe`: cannot read 'no.yaml'"),
        ({"model": 5}, "`model` must be text, got 5"),
        ({"tasks": 5}, "`tasks` must be a list of texts, got 5"),
        ({"stop": 3}, "`stop` must be a list of texts, got 3"),
        ({"seed": "abc"}, "`seed` must be a whole number, got 'abc'"),
        ({"max_retries": "x"}, "`max_retries` must be a whole number, at least 0, got 'x'"),
        ({"request_timeout": 0.0}, "`request_timeout` must be positive, got 0.0"),
    ],
)
def test_settings_that_cannot_work(settings, message):
    with pytest.raises(ValueError, match=message):
        EvalConfig(**{"model": "m", **settings})


def test_defaults_are_the_published_ones():
    sampling = EvalConfig(model="m").sampling()
    assert (sampling.temperature, sampling.top_p, sampling.max_tokens) == (1.0, 0.7, 20_480)
    assert EvalConfig(model="m", preset="qwen3-thinking", top_k=5).sampling() == SamplingSettings(
        temperature=0.6, top_p=0.95, top_k=5, max_tokens=38_912
    )
    assert EvalConfig(model="m").n == 32
    assert all(preset.source for preset in PRESETS.values())


def test_the_folder_has_the_models_name():
    assert EvalConfig(model="Qwen/Qwen3-8B").run_folder() == Path("outputs/eval/Qwen-Qwen3-8B")
    assert EvalConfig(model="./out/x/").run_folder() == Path("outputs/eval/out-x")


# ---- tasks


def test_prompts_of_a_task(data, tmp_path):
    (task,) = load_tasks(config(data, tmp_path))
    assert task.name == "sums"
    assert task.problems[1].question == "1+2 ="
    assert task.problems[1].answer == "3"
    (message,) = task.problems[1].prompt
    assert message["role"] == "user"
    assert message["content"].startswith("1+2 =")
    assert message["content"].endswith("\\boxed{}.")
    own = config(data, tmp_path, system_prompt="Be brief.", prompt_template="Q: {problem} {x}", preset="dapo")
    assert load_tasks(own)[0].problems[0].prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 0+1 = {x}"},
    )
    plain = config(data, tmp_path, plain_prompts=True, prompt_template="{problem}", limit=2)
    assert [problem.prompt for problem in load_tasks(plain)[0].problems] == ["0+1 =", "1+2 ="]


def test_a_named_task_from_a_file(tmp_path, data):
    (task,) = load_tasks(config(data, tmp_path, tasks=[f"aime24={data}"]))
    assert task.name == "aime24"
    assert len(task.problems) == 6


def test_own_columns_and_formats(tmp_path):
    rows = {"frage": ["2+2", "3+3"], "antwort": [4.0, None]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    settings = {"tasks": [str(tmp_path / "x.parquet")], "problem_column": "frage", "answer_column": "antwort"}
    with pytest.raises(ValueError, match=r"'x' has no answer in row 1, counted from 0 \(column 'antwort'\): None"):
        load_tasks(EvalConfig(model="m", **settings))
    (task,) = load_tasks(EvalConfig(model="m", limit=1, **settings))
    assert task.problems[0].answer == "4"
    with pytest.raises(ValueError, match=r"set `problem_column` for 'x'. Its columns: 'frage', 'antwort'"):
        load_tasks(EvalConfig(model="m", tasks=settings["tasks"]))
    with pytest.raises(ValueError, match=r"`answer_column`: 'x' has no column 'antwor'. Did you mean 'antwort'"):
        load_tasks(EvalConfig(model="m", **{**settings, "answer_column": "antwor"}))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["aime2024"], "unknown task 'aime2024'. Did you mean 'aime24'"),
        (["aime24"], "aime24=FILE.jsonl"),  # offline
        (["aime24="], "must be NAME=SOURCE"),
        (["no/such-dataset-xyz"], "`tasks`: cannot read"),
        (["./missing.jsonl"], "`tasks`: there is no file"),
        (["reasoning_gym:chain_su"], "Did you mean 'chain_sum'"),
        (["trl_credit:x"], "`tasks`: unknown dataset"),
        (["trl_credit:arithmetic", "trl_credit:arithmetic"], "is there twice"),
    ],
)
def test_tasks_that_cannot_be_loaded(tasks, message):
    with pytest.raises(ValueError, match=message):
        load_tasks(EvalConfig(model="m", tasks=tasks))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tasks": ["aime24"], "problem_column": "problem"}, "problem_column"),
        ({"tasks": ["trl_credit:arithmetic"], "dataset_split": "test"}, "dataset_split"),
        ({"tasks": ["aime24", "gsm8k"], "generated_dataset_size": 5}, "generated_dataset_size"),
    ],
)
def test_settings_of_other_tasks_have_no_effect(settings, field):
    with pytest.raises(ValueError, match=f"`{field}` has no effect on the tasks {settings['tasks'][0]}"):
        load_tasks(EvalConfig(model="m", **settings))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"concurrency": 3}, "concurrency"),
        ({"backend": "transformers", "vllm_kwargs": {"a": 1}}, "vllm_kwargs"),
        ({"base_url": "http://127.0.0.1:1/v1", "dtype": "bfloat16"}, "dtype"),
        ({"backend": "server", "base_url": "http://127.0.0.1:1/v1", "batch_size": 3}, "batch_size"),
        ({"backend": "vllm", "request_timeout": 3.0}, "request_timeout"),
    ],
)
def test_settings_of_other_backends_have_no_effect(settings, field):
    with pytest.raises(ValueError, match=f"`{field}` has no effect with the backend"):
        make_backend(EvalConfig(model="trl_credit:quickstart", **settings))


def test_prompts_of_plain_text_have_no_system_prompt():
    settings = {"tasks": ["trl_credit:arithmetic"], "generated_dataset_size": 2}
    with pytest.raises(
        ValueError, match="`system_prompt` has no effect: the prompts of trl_credit:arithmetic are plain text"
    ):
        load_tasks(EvalConfig(model="m", system_prompt="x", **settings))


def test_gsm8k_from_a_file_has_its_marker(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "3 * 4 = 12\n#### 12"}) + "\n")
    assert load_tasks(EvalConfig(model="m", tasks=[f"gsm8k={path}"]))[0].problems[0].answer == "12"


def test_a_recipe_gives_what_is_not_set(tmp_path, data):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(
        yaml.safe_dump({"output_dir": "out", "eval": {"tasks": [data], "n": 4, "every": 5, "top_p": 0.9}})
    )
    found = EvalConfig(recipe=str(recipe), n=6)
    assert (found.model, found.tasks, found.n, found.top_p) == ("out", [data], 6, 0.9)


def test_generated_tasks():
    names = ["trl_credit:arithmetic", "reasoning_gym:chain_sum"]
    tasks = load_tasks(EvalConfig(model="m", tasks=names, generated_dataset_size=3))
    assert [task.name for task in tasks] == names
    problem = tasks[0].problems[0]
    assert problem.prompt == problem.question
    assert str(eval(problem.question.removesuffix("="))) == problem.answer
    assert all(len(task.problems) == 3 for task in tasks)
    assert (
        load_tasks(EvalConfig(model="m", tasks=["trl_credit:arithmetic"], generated_dataset_seed=1))[0].sha256
        != tasks[0].sha256
    )


def test_gsm8k_answers_are_what_follows_the_marker(monkeypatch):
    rows = Dataset.from_dict({"question": ["How many?"], "answer": ["3 * 4 = <<3*4=12>>12\n#### 12"]})
    monkeypatch.setattr("trl_credit.evaluation.tasks.load_splits", lambda *a, **k: {"test": rows})
    assert load_tasks(EvalConfig(model="m", tasks=["gsm8k"]))[0].problems[0].answer == "12"


def test_named_tasks_name_their_columns():
    assert all(spec.split and spec.problem_column and spec.answer_column for spec in TASKS.values())


# ---- seeds


def test_seeds():
    seeds = {sample_seed(0, task, p, i) for task in "ab" for p in range(40) for i in range(40)}
    assert len(seeds) == 3200
    assert all(0 <= seed < 2**31 for seed in seeds)
    assert sample_seed(0, "a", 1, 12) != sample_seed(0, "a", 11, 2)
    assert sample_seed(1, "a", 1, 1) != sample_seed(0, "a", 1, 1)
    assert sample_seed(0, "aime24", 3, 17) == 1898379512  # of another day: published runs stay comparable


# ---- a run


def oracle(results, rows, n):
    """avg@n, pass@k and maj@n by counting."""
    groups = {}
    for row in rows:
        groups.setdefault(row["problem"], []).append(row)
    correct = [[row["correct"] for row in group] for group in groups.values()]
    average = sum(Fraction(sum(c), n) for c in correct) / len(correct)
    passed = sum(
        Fraction(sum(any(subset) for subset in combinations(c, 2)), len(list(combinations(c, 2)))) for c in correct
    ) / len(correct)
    majority = Fraction(0)
    for group in groups.values():
        votes = [row["vote"] for row in group if row["vote"] is not None]
        best = max((votes.count(vote) for vote in votes), default=0)
        winners = {vote for vote in votes if votes.count(vote) == best}
        right = {row["vote"] for row in group if row["correct"]}
        majority += Fraction(len(winners & right), len(winners) or 1)
    return float(average), float(passed), float(majority / len(groups))


def test_a_whole_run(data, tmp_path):
    settings = config(data, tmp_path, n=7, report=True)
    results = evaluate(settings, FakeBackend())
    rows = read_lines(tmp_path / "run" / "samples.jsonl")
    part = results["tasks"]["sums"]
    average, passed, majority = oracle(results, rows, 7)
    assert part["avg"] == pytest.approx(average, abs=1e-12)
    assert part["pass"]["2"] == pytest.approx(passed, abs=1e-12)
    assert part["maj"]["7"] == pytest.approx(majority, abs=1e-12)
    assert part["pass"]["1"] == pytest.approx(part["maj"]["1"]) == pytest.approx(average)
    assert list(part["pass"]) == ["1", "2", "4", "7"]
    assert part["truncated"] == sum(row["finish"] == "length" for row in rows) / 42 > 0
    assert part["empty"] == sum(row["text"] == "" for row in rows) / 42 > 0
    assert part["unparsed"] == sum(row["text"].startswith("I do not") for row in rows) / 42 > 0
    assert part["tokens"]["mean"] == pytest.approx(sum(row["tokens"] for row in rows) / 42)
    assert results["overall"]["avg"] == pytest.approx(average)
    assert results == json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["settings"]["sampling"]["top_p"] == 0.7
    assert results["versions"]["trl-credit"]
    assert results["fingerprint"]["data"]["sums"]
    assert all(row["reason"] for row in rows)
    assert (tmp_path / "run" / "report.html").stat().st_size > 10_000
    problems = read_lines(tmp_path / "run" / "problems.jsonl")
    assert [row["answer"] for row in problems] == ["1", "3", "5", "7", "9", "11"]


@pytest.mark.parametrize("n", range(1, 65))
def test_the_average_at_every_n(data, tmp_path, n):
    results = evaluate(config(data, tmp_path, n=n, limit=3), FakeBackend(rate=0.3))
    backend, (task,) = FakeBackend(rate=0.3), load_tasks(config(data, tmp_path, limit=3))
    requests = make_requests([task], n, 0)
    assert len(requests) == 3 * n
    right = [f"\\boxed{{{task.problems[r.problem].answer}}}" in backend.answer(r).text for r in requests]
    assert results["tasks"]["sums"]["avg"] == pytest.approx(sum(right) / (3 * n), abs=1e-12)


def test_several_tasks_are_averaged_alike(data, tmp_path):
    small = tmp_path / "small.jsonl"
    small.write_text('{"problem": "1+1", "answer": "2"}\n')
    results = evaluate(config(data, tmp_path, tasks=[data, str(small)]), FakeBackend())
    tasks = results["tasks"]
    assert results["overall"]["avg"] == pytest.approx((tasks["sums"]["avg"] + tasks["small"]["avg"]) / 2)
    assert tasks["small"]["stderr"] is results["overall"]["stderr"] is None  # one problem
    assert results["overall"]["tokens"]["total"] == sum(part["tokens"]["total"] for part in tasks.values())


def test_the_order_of_generation_does_not_matter(data, tmp_path):
    for order in (None, 1):
        evaluate(config(data, tmp_path, output_dir=str(tmp_path / f"run{order}")), FakeBackend(order=order))
    one, other = (tmp_path / f"run{order}" / "samples.jsonl" for order in (None, 1))
    assert one.read_bytes() == other.read_bytes()


def test_an_answer_pattern(data, tmp_path):
    results = evaluate(config(data, tmp_path, answer_pattern=r"is \\boxed\{(\d+)\}"), FakeBackend(rate=0.5))
    rows = read_lines(tmp_path / "run" / "samples.jsonl")
    assert all(row["correct"] == row["text"].startswith("I add") for row in rows)
    unmatched = [row for row in rows if row["text"] and not row["correct"]]
    assert {row["status"] for row in unmatched} == {"unparsed"}
    task = replace(load_tasks(config(data, tmp_path))[0], answer_pattern="#([0-9]+)")
    texts = ["#7, no, #3", "<think>#3", "<think>#3</think> #4"]
    found = judge_samples([{"task": "sums", "problem": 1, "text": text} for text in texts], [task])
    assert [(row["correct"], row["answer"]) for row in found] == [(True, "3"), (False, None), (False, "4")]
    assert found[0]["reason"] == "By `answer_pattern`: 3 is the integer 3."
    assert "answer_pattern" in unmatched[0]["reason"]
    assert results["tasks"]["sums"]["unparsed"] == len(unmatched) / len(rows)


def test_answers_that_nothing_can_be_verified_against(tmp_path, caplog):
    path = tmp_path / "x.jsonl"
    rows = [{"problem": "1+2", "answer": "3"}, {"problem": "1+1", "answer": "$"}]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    results = evaluate(config(str(path), tmp_path), FakeBackend(rate=1.0))
    part = results["tasks"]["x"]
    assert (part["unjudged"], part["problems"], part["avg"]) == (1, 2, 1.0)
    assert part["per_problem"][1]["correct"] is None
    assert "1 of 2 answers cannot be verified against, for example '$'" in caplog.text
    path.write_text(json.dumps(rows[1]) + "\n")
    with pytest.raises(ValueError, match="no answer of 'x' can be verified against"):
        evaluate(config(str(path), tmp_path, output_dir=str(tmp_path / "other")), FakeBackend())


# ---- nothing lost


def interrupted(settings, action, after=11, order=3):
    backend = FakeBackend(stop_after=after, action=action, order=order)
    with pytest.raises((Interrupted, RuntimeError, RunFolderError, BackendError)) as caught:
        evaluate(settings, backend)
    return caught.value


def fail():
    raise RuntimeError("the power went out")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished(data, tmp_path, number):
    settings = config(data, tmp_path)
    before = signal.getsignal(number)
    error = interrupted(settings, lambda: os.kill(os.getpid(), number))
    assert isinstance(error, Interrupted)
    assert error.exit_code == 128 + number
    assert "11 samples were made and are kept: the same command makes the rest" in str(error)
    assert signal.getsignal(number) == before
    assert len(read_lines(tmp_path / "run" / "samples.jsonl")) == 11
    backend = FakeBackend()
    results = evaluate(settings, backend)
    assert len(backend.made) == 30 - 11
    whole = evaluate(config(data, tmp_path, output_dir=str(tmp_path / "whole")), FakeBackend())
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert results["tasks"] == whole["tasks"]
    assert results["fingerprint"]["run"] == whole["fingerprint"]["run"]


def test_a_finished_run_makes_nothing_again(data, tmp_path):
    first = evaluate(config(data, tmp_path), FakeBackend())
    backend = FakeBackend()
    assert evaluate(config(data, tmp_path), backend)["tasks"] == first["tasks"]
    assert backend.made == []


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_half_written_line_is_repaired(data, tmp_path, caplog, cut):
    settings = config(data, tmp_path)
    interrupted(settings, fail)
    path = tmp_path / "run" / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 20
    assert "1 half-written line(s) removed" in caplog.text
    assert len(read_lines(path)) == 30


def test_lines_that_are_no_samples_are_made_again(data, tmp_path):
    settings = config(data, tmp_path)
    interrupted(settings, fail)
    path = tmp_path / "run" / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    lines[2] = '{"task": "sums"}\n'
    lines[3] = json.dumps({**json.loads(lines[3]), "seed": 1}) + "\n"
    lines[4] = "\x00" * 20 + "\n"
    lines[5] = "[1]\n"
    path.write_text("".join([*lines, lines[6]]))  # one twice
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 30 - 11 + 4
    assert len(read_lines(path)) == 30


def damage(line, kind):
    row = json.loads(line)
    if kind == "no tokens":
        del row["tokens"]
    elif kind == "nested":
        return "[" * 100_000
    elif kind == "a boolean":
        row["problem"] = bool(row["problem"])
    else:
        row[kind] = {"text": row["text"] + " ", "finish": "stopped", "tokens": 7, "checksum": "0" * 16}[kind]
    return json.dumps(row)


@pytest.mark.parametrize("kind", ["no tokens", "nested", "a boolean", "text", "finish", "tokens", "checksum"])
def test_damaged_samples_are_made_again(data, tmp_path, caplog, kind):
    evaluate(config(data, tmp_path), FakeBackend())
    path = tmp_path / "run" / "samples.jsonl"
    whole = path.read_text()
    lines = whole.splitlines()
    lines[7] = damage(lines[7], kind)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunFolderError, match="has not the 30 samples"):
        judge_again(tmp_path / "run")
    backend = FakeBackend()
    evaluate(config(data, tmp_path), backend)
    assert len(backend.made) == 1
    assert path.read_text() == whole
    said = "1 half-written line(s) removed" if kind == "nested" else "1 damaged sample(s) are made again"
    assert caplog.text.count(said) == 1


def test_a_folder_without_checksums_goes_on(data, tmp_path, caplog):
    settings = config(data, tmp_path)
    interrupted(settings, fail)
    path = tmp_path / "run" / "samples.jsonl"
    rows = read_lines(path)
    assert all(row.pop("checksum") for row in rows)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 30 - 11
    assert "damaged" not in caplog.text
    judge_again(tmp_path / "run")


def test_changed_problems_are_not_judged_by(data, tmp_path):
    evaluate(config(data, tmp_path), FakeBackend())
    path = tmp_path / "run" / "problems.jsonl"
    path.write_text(path.read_text().replace('"answer": "1"', '"answer": "2"'))
    with pytest.raises(RunFolderError, match="the problems of sums are not those of the results"):
        judge_again(tmp_path / "run")


def test_any_of_several_answers(tmp_path):
    rows = [{"problem": f"{i}+{i + 1} =", "answer": [str(2 * i + 1), str(2 * i + 2)]} for i in range(6)]
    path = tmp_path / "several.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    settings = config(str(path), tmp_path, answer_match="any", report=True)
    results = evaluate(settings, FakeBackend())
    rows = read_lines(tmp_path / "run" / "samples.jsonl")
    assert {row["answer"] for row in rows if row["problem"] == 1 and row["correct"]} == {"3", "4"}
    assert {row["vote"] for row in rows if row["problem"] == 1 and row["correct"]} == {"any of: 3 | 4"}
    assert results["tasks"]["several"]["per_problem"][1]["answer"] == "3 or 4"
    assert read_lines(tmp_path / "run" / "problems.jsonl")[1]["answers"] == ["3", "4"]
    assert judge_again(tmp_path / "run")["tasks"] == results["tasks"]
    with pytest.raises(RunFolderError, match="other settings or data"):
        evaluate(replace(settings, answer_match="all"), FakeBackend())


def test_the_identity_of_problems_with_one_answer_stays(data):
    (task,) = load_tasks(EvalConfig(model="m", tasks=[data]))
    assert task.identity() == {
        "problems": 6,
        "sha256": "826c49603ac9a9498f7746e47deaa16b3ea150964b77a909c58eb2deeef1b13b",
        "prompts_sha256": "994d6b183a5468e28a5f7d3060045143d615a8e26ec3d9a4fbe0c1d77a60f82a",
        "answer_pattern": None,
    }


def test_samples_of_other_processes_are_taken_in(data, tmp_path):
    settings = config(data, tmp_path)
    interrupted(settings, fail)
    path = tmp_path / "run" / "samples.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:5]))
    path.with_name("samples.rank3.jsonl").write_text("".join(lines[4:]))
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 30 - 11
    assert not list((tmp_path / "run").glob("samples.rank*"))


@pytest.mark.parametrize(
    ("change", "shown"),
    [
        ({"temperature": 0.5}, "sampling.temperature: 1.0 -> 0.5"),
        ({"seed": 1}, "seed: 0 -> 1"),
        ({"n": 4}, "n: 5 -> 4"),
        ({"n": 6}, "`extend` makes the missing samples"),
        ({"limit": 3}, "tasks.sums.problems: 6 -> 3"),
        ({"prompt_template": "{problem}"}, "tasks.sums.prompts_sha256"),
        ({"chat_template_kwargs": {"enable_thinking": False}}, "chat_template_kwargs.enable_thinking: null -> false"),
        ({"answer_pattern": "(x)"}, 'tasks.sums.answer_pattern: null -> "\\(x\\)"'),
        ({"answer_pattern": "answer_tag"}, "tasks.sums.answer_pattern: null -> "),
    ],
)
def test_other_settings_are_refused(data, tmp_path, change, shown):
    evaluate(config(data, tmp_path), FakeBackend())
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=shown):
        evaluate(config(data, tmp_path, **change), FakeBackend())
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


def test_another_model_and_other_data_are_refused(data, tmp_path):
    evaluate(config(data, tmp_path), FakeBackend())
    with pytest.raises(RunFolderError, match=r'backend.model: "A" -> "B"'):
        evaluate(config(data, tmp_path), FakeBackend(model="B"))
    Path(data).write_text('{"problem": "1+1", "answer": "2"}\n' * 6)
    with pytest.raises(RunFolderError, match=r"tasks.sums.sha256"):
        evaluate(config(data, tmp_path), FakeBackend())


def test_how_it_is_run_does_not_matter(data, tmp_path):
    evaluate(config(data, tmp_path), FakeBackend())
    backend = FakeBackend()
    evaluate(config(data, tmp_path, batch_size=3, concurrency=1, max_retries=0), backend)
    assert backend.made == []


def test_extending_a_run(data, tmp_path):
    evaluate(config(data, tmp_path), FakeBackend())
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1", "answer": "2"}\n')
    backend = FakeBackend()
    results = evaluate(config(data, tmp_path, n=8, tasks=[data, str(other)], extend=True), backend)
    assert len(backend.made) == 6 * 3 + 8
    fresh = config(data, tmp_path, n=8, tasks=[data, str(other)], output_dir=str(tmp_path / "fresh"))
    assert results["tasks"] == evaluate(fresh, FakeBackend())["tasks"]
    with pytest.raises(RunFolderError, match="answer_pattern"):  # more than an extension
        evaluate(config(data, tmp_path, n=9, extend=True, answer_pattern="(x)"), FakeBackend())


def test_an_unfinished_extension_keeps_the_results(data, tmp_path):
    evaluate(config(data, tmp_path, report=True), FakeBackend())
    interrupted(config(data, tmp_path, n=8, extend=True), fail, after=2)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["settings"]["n"] == 5
    assert compare_runs(tmp_path / "run", tmp_path / "run")["overall"]["difference"] == 0
    with pytest.raises(RunFolderError, match="has not the 30 samples of its results"):
        judge_again(tmp_path / "run")


def test_greedy_samples_are_alike(data, tmp_path, caplog):
    evaluate(config(data, tmp_path, temperature=0.0), FakeBackend())
    assert "At temperature 0 the 5 samples of a problem are alike" in caplog.text


def test_two_processes_on_one_folder(data, tmp_path):
    seen = []

    def second():
        with pytest.raises(RunFolderError, match="Another process is writing") as caught:
            evaluate(config(data, tmp_path), FakeBackend())
        seen.append(caught.value)

    backend = FakeBackend(stop_after=3, action=second)
    results = evaluate(config(data, tmp_path), backend)
    assert len(seen) == 1
    assert results["tasks"]["sums"]["n"] == 5
    evaluate(config(data, tmp_path), FakeBackend())  # and given back


def test_a_full_disk(data, tmp_path, monkeypatch):
    settings = config(data, tmp_path)

    class Full:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, data):
            self.written += 1
            if self.written > 9:
                self.file.write(data[:20])  # some of it fits
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(data)

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)) if "ab" in a else real(self, *a, **k)
    )
    with pytest.raises(RunFolderError, match=r"No space left on device. What was written before is kept"):
        evaluate(settings, FakeBackend())
    monkeypatch.undo()
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 9
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 21


def test_a_full_disk_at_the_end(data, tmp_path, monkeypatch):
    """The report is what does not fit."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    evaluate(config(data, tmp_path), FakeBackend())
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(
        RunFolderError, match=r"Cannot write .*: No space left on device. What was written before is kept"
    ):
        evaluate(config(data, tmp_path), FakeBackend())
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]


def test_what_a_killed_process_left_is_removed(data, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".samples.jsonl.abc.tmp").write_text("x")
    evaluate(config(data, tmp_path), FakeBackend())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *(".lock", "problems.jsonl", "results.json", "run.json", "samples.jsonl"),
    ]


@pytest.mark.parametrize("text", ["nonsense", "[1]", "{}", '{"identity": {"tasks": 3}}'])
def test_damaged_files_are_named(data, tmp_path, text):
    evaluate(config(data, tmp_path), FakeBackend())
    (tmp_path / "run" / "results.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"results.json is n"):
        compare_runs(tmp_path / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"run.json is n"):
        evaluate(config(data, tmp_path), FakeBackend())


def test_a_run_without_its_problems(data, tmp_path):
    evaluate(config(data, tmp_path), FakeBackend())
    (tmp_path / "run" / "problems.jsonl").unlink()
    with pytest.raises(RunFolderError, match="has not the 0 samples"):
        judge_again(tmp_path / "run")


def test_the_context_cuts_the_samples_of_a_run_alike(data, tmp_path):
    """A longer prompt would cut the completions of an extension shorter."""

    class Cutting(FakeBackend):
        def prepare(self, requests, sampling):
            return replace(sampling, max_tokens=100 - max(len(str(request.prompt)) for request in requests) % 100)

    evaluate(config(data, tmp_path), Cutting())
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1 and so on and on", "answer": "2"}\n')
    with pytest.raises(RunFolderError, match=r"sampling.max_tokens: \d+ -> \d+"):
        evaluate(config(data, tmp_path, tasks=[data, str(other)], extend=True), Cutting())


def test_no_file_has_the_keys_of_an_address(data, tmp_path):
    """A run goes on with another key, and so does one that was written with its key."""
    settings = {"backend": "server", "report": True}

    def given(key):
        return config(data, tmp_path, base_url=f"http://host/v1?api_key={key}", **settings)

    with pytest.raises(RuntimeError):
        evaluate(given("SECRET-1"), FakeBackend(stop_after=5, action=fail))
    later = FakeBackend()
    results = evaluate(given("SECRET-2"), later)
    assert len(later.made) == 25
    assert results["settings"]["config"]["base_url"] == "http://host/v1?api_key=***"
    folder = tmp_path / "run"

    def text():
        return "".join(path.read_text() for path in folder.iterdir() if path.name != ".lock")

    assert "SECRET" not in text()
    assert str(tmp_path) not in (folder / "report.html").read_text()
    results["settings"]["config"]["base_url"] = "http://host/v1?api_key=SECRET"
    (folder / "results.json").write_text(json.dumps(results))
    assert "SECRET" not in json.dumps(compare_runs(folder, folder))
    judge_again(folder)
    assert "SECRET" not in text()


def test_a_run_written_with_a_key_goes_on(tmp_path):
    folder = RunFolder(tmp_path)
    identity = {"n": 1, "tasks": {}, "backend": {"vllm_kwargs": {"hf_token": "hf_SECRET"}}}
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "identity": identity, "notes": []}))
    folder.check({**identity, "backend": {"vllm_kwargs": {"hf_token": "***"}}})
    assert "SECRET" not in (tmp_path / "run.json").read_text()
    with pytest.raises(RunFolderError, match="n: 1 -> 2"):
        folder.check({**identity, "n": 2})


def test_notes_of_the_backend_are_in_the_results(data, tmp_path, capsys):
    class Noting(FakeBackend):
        def notes(self):
            return ["top_k was left out"]

    with pytest.raises(RuntimeError):
        evaluate(config(data, tmp_path), Noting(stop_after=5, action=fail))
    results = evaluate(config(data, tmp_path), FakeBackend())  # which has nothing to say
    assert results["settings"]["notes"] == ["top_k was left out"]
    assert evaluate(config(data, tmp_path), Noting())["settings"]["notes"] == ["top_k was left out"]
    Noting.notes = lambda self: ["min_p was left out"]
    later = evaluate(config(data, tmp_path), Noting())
    assert later["settings"]["notes"] == ["top_k was left out", "min_p was left out"]
    show(results)
    assert "Note: top_k was left out." in capsys.readouterr().out


def test_lengths_of_wrong_answers_are_of_judged_ones(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "1+2", "answer": "3"}\n{"problem": "1+1", "answer": "$"}\n')
    part = evaluate(config(str(path), tmp_path, n=9), FakeBackend(rate=0.5))["tasks"]["x"]
    rows = [row for row in read_lines(tmp_path / "run" / "samples.jsonl") if row["correct"] is False]
    assert part["tokens"]["mean_wrong"] == pytest.approx(sum(row["tokens"] for row in rows) / len(rows))
    assert part["per_problem"][0]["majority_correct"] in (True, False)


def test_a_folder_that_cannot_be_made(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="`output_dir`: cannot write to"):
        evaluate(config(data, tmp_path, output_dir=str(tmp_path / "file" / "run")), FakeBackend())


def test_samples_without_their_run(data, tmp_path):
    evaluate(config(data, tmp_path), FakeBackend())
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"holds samples but no run.json"):
        evaluate(config(data, tmp_path), FakeBackend())


def test_a_backend_that_leaves_samples_out(data, tmp_path):
    class Lazy(FakeBackend):
        def generate(self, requests, sampling, emit):
            super().generate(requests[:-2], sampling, emit)

    with pytest.raises(BackendError, match="2 of 30 samples are missing"):
        evaluate(config(data, tmp_path), Lazy())


def test_atomic_writing(tmp_path):
    path = tmp_path / "x"
    write_atomically(path, ["a"])

    def lines():
        yield "b"
        raise RuntimeError

    with pytest.raises(RuntimeError):
        write_atomically(path, lines())
    assert path.read_text() == "a"
    assert os.listdir(tmp_path) == ["x"]


def test_differences_are_found():
    old, new = {"a": {"b": 1, "c": 2}, "d": 3}, {"a": {"b": 1, "c": 4}, "e": 5}
    assert differences(old, new) == [("a.c", 2, 4), ("d", 3, None), ("e", None, 5)]


def test_other_threads_leave_signals_alone(data, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(evaluate(config(data, tmp_path), FakeBackend())))
    thread.start()
    thread.join()
    assert results


def test_judging_again(data, tmp_path):
    first = evaluate(config(data, tmp_path), FakeBackend())
    path = tmp_path / "run" / "samples.jsonl"
    rows = [{**row, "correct": False, "reason": "another judge"} for row in read_lines(path)]
    write_atomically(path, (json.dumps(row) + "\n" for row in rows))
    again = judge_again(tmp_path / "run")
    assert again["tasks"] == first["tasks"]
    assert "another judge" not in path.read_text()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RunFolderError, match="has not the 30 samples"):
        judge_again(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    with pytest.raises(RunFolderError, match="Another process"):
        judge_again(tmp_path / "run")
    folder.close()


# ---- comparison


@pytest.fixture
def two_runs(data, tmp_path):
    for name, rate in (("a", 0.1), ("b", 0.75)):
        evaluate(config(data, tmp_path, model=name, n=24, output_dir=str(tmp_path / name)), FakeBackend(name, rate))
    return tmp_path / "a", tmp_path / "b"


def test_comparing_two_runs(two_runs):
    found = compare_runs(*two_runs)
    part = found["tasks"]["sums"]
    averages = [json.loads((path / "results.json").read_text())["overall"]["avg"] for path in two_runs]
    assert (part["a_avg"], part["b_avg"]) == pytest.approx(tuple(averages))
    assert part["difference"] == pytest.approx(averages[1] - averages[0])
    assert 0 < part["low"] < part["difference"] < part["high"] < 1
    assert found["overall"]["difference"] == pytest.approx(part["difference"])
    assert {row["moved"] for row in part["per_problem"]} == {"up"}
    assert part["per_problem"][0]["question"] == "0+1 ="
    assert found["differences"] == []
    same = compare_runs(two_runs[0], two_runs[0])["tasks"]["sums"]
    assert (same["difference"], same["low"], same["high"], same["p_value"]) == (0, 0, 0, 1)


def test_comparing_what_cannot_be_compared(two_runs, tmp_path, data):
    with pytest.raises(RunFolderError, match=r"There is no results.json"):
        compare_runs(two_runs[0], tmp_path)
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1", "answer": "2"}\n')
    evaluate(config(str(other), tmp_path, output_dir=str(tmp_path / "c")), FakeBackend())
    with pytest.raises(ValueError, match="no task in common"):
        compare_runs(two_runs[0], tmp_path / "c")
    evaluate(config(f"sums={other}", tmp_path, output_dir=str(tmp_path / "d")), FakeBackend())
    with pytest.raises(ValueError, match=r"not the same in the two runs .6 and 1."):
        compare_runs(two_runs[0], tmp_path / "d")
    evaluate(config(data, tmp_path, top_p=1.0, n=3, output_dir=str(tmp_path / "e")), FakeBackend())
    fields = {row["field"] for row in compare_runs(two_runs[0], tmp_path / "e")["differences"]}
    assert fields == {"sampling.top_p", "n"}
    evaluate(config(data, tmp_path, tasks=[data, str(other)], n=24, output_dir=str(tmp_path / "f")), FakeBackend())
    more = compare_runs(two_runs[0], tmp_path / "f")
    assert (more["left_out"], more["differences"]) == (["other"], [])


# ---- the command


def run_main(*arguments):
    with pytest.raises(SystemExit) as caught:
        main([str(argument) for argument in arguments])
    return caught.value.code


EMBEDDED = ("--model", "trl_credit:quickstart", "--tasks", "trl_credit:arithmetic")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "m", "--taks", "x"], "Unknown field `taks` on the command line. Did you mean 'tasks'"),
        (["--model", "./no/such/folder", "--tasks", "trl_credit:arithmetic"], "there is no folder"),
        (["--model", "no/such-model-xyz", "--tasks", "trl_credit:arithmetic"], "neither a folder with a model"),
        (["--tasks", "trl_credit:arithmetic"], "`model` is not set"),
        (["--model", "m", "--temperature", "-1"], "`temperature` must be non-negative, got -1.0"),
        (["--model", "m", "--n", "x"], "argument --n"),
        ([], "Nothing to do: give --config FILE.yaml"),
        (["reprot", "x"], "unknown command 'reprot'. Did you mean 'report'"),
        (["--config", "no.yaml"], "cannot read 'no.yaml'"),
        (
            [*EMBEDDED, "--plain_prompts", "false"],
            "chat template",
        ),
        (
            [*EMBEDDED, "--backend", "vllm"],
            "trl-credit[vllm]",
        ),
        (
            [*EMBEDDED, "--dtype", "int8"],
            "`dtype`: unknown",
        ),
        (["compare", "x", "y"], "There is no results.json in x"),
        (["report", "x"], "There is no results.json in x"),
    ],
)
def test_wrong_commands(arguments, message, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run_main(*arguments) == 2
    error = capsys.readouterr().err
    assert message in error
    assert "Traceback" not in error
    assert not (tmp_path / "outputs").exists()


def test_the_command_on_the_embedded_model(tmp_path, capsys):
    recipe = tmp_path / "eval.yaml"
    settings = {
        "model": "trl_credit:quickstart",
        "tasks": ["trl_credit:arithmetic"],
        "generated_dataset_size": 6,
        "n": 3,
    }
    recipe.write_text(yaml.safe_dump({**settings, "max_tokens": 40, "output_dir": str(tmp_path / "a")}))
    main(["--config", str(recipe)])
    output = capsys.readouterr().out
    assert "avg@3" in output
    assert "pass@3" in output
    main(["--config", str(recipe), "--output_dir", str(tmp_path / "b"), "--seed", "1"])
    main(["compare", str(tmp_path / "a"), str(tmp_path / "b")])
    output = capsys.readouterr().out
    assert "The runs differ in more than the model:\n  seed: 0 -> 1" in output
    assert {path.name for path in (tmp_path / "b" / "compare-a").iterdir()} == {
        *("comparison.json", "comparison.html", "comparison.png"),
    }
    main(["report", str(tmp_path / "a")])
    assert "avg@3" in capsys.readouterr().out
    assert run_main("--config", recipe, "--n", "4") == 2
    assert "n: 3 -> 4" in capsys.readouterr().err


@pytest.mark.slow
def test_processes_without_a_common_disk(data, tmp_path):
    """As on two machines: each process writes to a folder of its own, and the main one gets all samples."""
    script = tmp_path / "script.py"
    script.write_text(
        "import os\n"
        "from pathlib import Path\n"
        "from test_evaluation import FakeBackend, config\n"
        "from trl_credit.evaluation import evaluate\n"
        "from accelerate import PartialState\n"
        f"here = Path({str(tmp_path)!r}, os.environ['RANK'])\n"
        f"results = evaluate(config({data!r}, here), FakeBackend())\n"
        "assert results['tasks']['sums']['n'] == 5\n"
        "PartialState().destroy_process_group()\n"
    )
    here = Path(__file__).parent
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": f"{here}{os.pathsep}{here.parent}"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "3", str(script)]
    evaluate(config(data, tmp_path, output_dir=str(tmp_path / "alone")), FakeBackend())
    # Of an earlier run, with other weights
    (tmp_path / "2" / "run").mkdir(parents=True)
    stale = [{**row, "text": "old"} for row in read_lines(tmp_path / "alone" / "samples.jsonl")]
    write_atomically(tmp_path / "2" / "run" / "samples.rank2.jsonl", (json.dumps(row) + "\n" for row in stale))
    subprocess.run(command, env=environment, check=True, capture_output=True, timeout=300)
    assert (tmp_path / "0" / "run" / "samples.jsonl").read_bytes() == (
        tmp_path / "alone" / "samples.jsonl"
    ).read_bytes()
    assert len(read_lines(tmp_path / "2" / "run" / "samples.rank2.jsonl")) == 10


@pytest.mark.slow
def test_killed_at_any_moment(tmp_path):
    """SIGKILL, SIGINT and SIGTERM to the real command, each continued, give the run that was never stopped."""
    command = [sys.executable, "-m", "trl_credit.cli", "eval", "--model", "trl_credit:quickstart", "--max_tokens", "40"]
    command += ["--tasks", "trl_credit:arithmetic", "--generated_dataset_size", "40", "--n", "32", "--batch_size", "16"]
    command += ["--output_dir"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = tmp_path / "stopped" / "samples.jsonl"
    target = 200
    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130), (signal.SIGTERM, 143)):
        process = subprocess.Popen(
            [*command, str(tmp_path / "stopped")], env=environment, stderr=subprocess.PIPE, text=True
        )
        while process.poll() is None and (not path.exists() or path.read_bytes().count(b"\n") < target):
            pass
        process.send_signal(number)
        error = process.communicate(timeout=120)[1]
        assert process.returncode == code, error
        count = path.read_bytes().count(b"\n")
        assert target <= count < 1280
        target = count + 200
        if number != signal.SIGKILL:
            assert "the same command makes the rest" in error
    for name in ("stopped", "whole"):
        subprocess.run([*command, str(tmp_path / name)], env=environment, check=True, capture_output=True)
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    stopped, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("stopped", "whole"))
    assert stopped["tasks"] == whole["tasks"]
