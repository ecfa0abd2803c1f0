"""An evaluation, end to end, with a backend that needs no model."""

import json
import os
import signal
import subprocess
import sys
import threading
from dataclasses import replace
from fractions import Fraction
from itertools import combinations

import pytest
from support.evaluation import FakeBackend, config, fail

from trl_credit._util.files import RunFolderError, read_lines, write_atomically
from trl_credit.evaluation import evaluate
from trl_credit.evaluation.backends.base import BackendError
from trl_credit.evaluation.compare import compare_runs
from trl_credit.evaluation.run import judge_again, judge_samples, make_requests, sample_seed
from trl_credit.evaluation.store import RunFolder
from trl_credit.evaluation.tasks import load_tasks
from trl_credit.evaluation.terminal import show


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


def test_a_whole_run(sums, tmp_path):
    settings = config(sums, tmp_path, n=7, report=True)
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
def test_the_average_at_every_n(sums, tmp_path, n):
    results = evaluate(config(sums, tmp_path, n=n, limit=3), FakeBackend(rate=0.3))
    backend, (task,) = FakeBackend(rate=0.3), load_tasks(config(sums, tmp_path, limit=3))
    requests = make_requests([task], n, 0)
    assert len(requests) == 3 * n
    right = [f"\\boxed{{{task.problems[r.problem].answer}}}" in backend.answer(r).text for r in requests]
    assert results["tasks"]["sums"]["avg"] == pytest.approx(sum(right) / (3 * n), abs=1e-12)


def test_several_tasks_are_averaged_alike(sums, tmp_path):
    small = tmp_path / "small.jsonl"
    small.write_text('{"problem": "1+1", "answer": "2"}\n')
    results = evaluate(config(sums, tmp_path, tasks=[sums, str(small)]), FakeBackend())
    tasks = results["tasks"]
    assert results["overall"]["avg"] == pytest.approx((tasks["sums"]["avg"] + tasks["small"]["avg"]) / 2)
    assert tasks["small"]["stderr"] is results["overall"]["stderr"] is None  # one problem
    assert results["overall"]["tokens"]["total"] == sum(part["tokens"]["total"] for part in tasks.values())


def test_the_order_of_generation_does_not_matter(sums, tmp_path):
    for order in (None, 1):
        evaluate(config(sums, tmp_path, output_dir=str(tmp_path / f"run{order}")), FakeBackend(order=order))
    one, other = (tmp_path / f"run{order}" / "samples.jsonl" for order in (None, 1))
    assert one.read_bytes() == other.read_bytes()


def test_an_answer_pattern(sums, tmp_path):
    results = evaluate(config(sums, tmp_path, answer_pattern=r"is \\boxed\{(\d+)\}"), FakeBackend(rate=0.5))
    rows = read_lines(tmp_path / "run" / "samples.jsonl")
    assert all(row["correct"] == row["text"].startswith("I add") for row in rows)
    unmatched = [row for row in rows if row["text"] and not row["correct"]]
    assert {row["status"] for row in unmatched} == {"unparsed"}
    task = replace(load_tasks(config(sums, tmp_path))[0], answer_pattern="#([0-9]+)")
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


def test_a_finished_run_makes_nothing_again(sums, tmp_path):
    first = evaluate(config(sums, tmp_path), FakeBackend())
    backend = FakeBackend()
    assert evaluate(config(sums, tmp_path), backend)["tasks"] == first["tasks"]
    assert backend.made == []


def test_changed_problems_are_not_judged_by(sums, tmp_path):
    evaluate(config(sums, tmp_path), FakeBackend())
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


def test_how_it_is_run_does_not_matter(sums, tmp_path):
    evaluate(config(sums, tmp_path), FakeBackend())
    backend = FakeBackend()
    evaluate(config(sums, tmp_path, batch_size=3, concurrency=1, max_retries=0), backend)
    assert backend.made == []


def test_greedy_samples_are_alike(sums, tmp_path, caplog):
    evaluate(config(sums, tmp_path, temperature=0.0), FakeBackend())
    assert "At temperature 0 the 5 samples of a problem are identical" in caplog.text


def test_the_context_cuts_the_samples_of_a_run_alike(sums, tmp_path):
    """A longer prompt would cut the completions of an extension shorter."""

    class Cutting(FakeBackend):
        def prepare(self, requests, sampling):
            return replace(sampling, max_tokens=100 - max(len(str(request.prompt)) for request in requests) % 100)

    evaluate(config(sums, tmp_path), Cutting())
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1 and so on and on", "answer": "2"}\n')
    with pytest.raises(RunFolderError, match=r"sampling.max_tokens: \d+ -> \d+"):
        evaluate(config(sums, tmp_path, tasks=[sums, str(other)], extend=True), Cutting())


def test_no_file_has_the_keys_of_an_address(sums, tmp_path):
    """A run goes on with another key, and so does one that was written with its key."""
    settings = {"backend": "server", "report": True}

    def given(key):
        return config(sums, tmp_path, base_url=f"http://host/v1?api_key={key}", **settings)

    with pytest.raises(RuntimeError):
        evaluate(given("SECRET-1"), FakeBackend(stop_after=5, action=fail))
    later = FakeBackend()
    results = evaluate(given("SECRET-2"), later)
    assert len(later.made) == 25
    assert results["settings"]["config"]["base_url"] == ["http://host/v1?api_key=***"]
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


def test_notes_of_the_backend_are_in_the_results(sums, tmp_path, capsys):
    class Noting(FakeBackend):
        def notes(self):
            return ["top_k was left out"]

    with pytest.raises(RuntimeError):
        evaluate(config(sums, tmp_path), Noting(stop_after=5, action=fail))
    results = evaluate(config(sums, tmp_path), FakeBackend())  # which has nothing to say
    assert results["settings"]["notes"] == ["top_k was left out"]
    assert evaluate(config(sums, tmp_path), Noting())["settings"]["notes"] == ["top_k was left out"]
    Noting.notes = lambda self: ["min_p was left out"]
    later = evaluate(config(sums, tmp_path), Noting())
    assert later["settings"]["notes"] == ["top_k was left out", "min_p was left out"]
    show(results)
    assert "Note: top_k was left out." in capsys.readouterr().out


def test_samples_without_an_answer_are_told_with_the_way_out(sums, tmp_path, capsys):
    results = evaluate(config(sums, tmp_path, answer_pattern=r"never (\d+)"), FakeBackend())
    show(results)
    assert "if they state it in a form of their own, set `answer_pattern`" in capsys.readouterr().out
    results["tasks"]["sums"]["truncated"] = 0.9
    show(results)
    assert "of the samples: most samples reached `max_tokens`: raise it." in capsys.readouterr().out
    results["tasks"]["sums"]["unparsed"] = 0.1
    show(results)
    assert "no answer was found" not in capsys.readouterr().out


def test_lengths_of_wrong_answers_are_of_judged_ones(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "1+2", "answer": "3"}\n{"problem": "1+1", "answer": "$"}\n')
    part = evaluate(config(str(path), tmp_path, n=9), FakeBackend(rate=0.5))["tasks"]["x"]
    rows = [row for row in read_lines(tmp_path / "run" / "samples.jsonl") if row["correct"] is False]
    assert part["tokens"]["mean_wrong"] == pytest.approx(sum(row["tokens"] for row in rows) / len(rows))
    assert part["per_problem"][0]["majority_correct"] in (True, False)


def test_a_backend_that_leaves_samples_out(sums, tmp_path):
    class Lazy(FakeBackend):
        def generate(self, requests, sampling, emit):
            super().generate(requests[:-2], sampling, emit)

    with pytest.raises(BackendError, match="2 of 30 samples are missing"):
        evaluate(config(sums, tmp_path), Lazy())


def test_other_threads_leave_signals_alone(sums, tmp_path):
    results = []
    thread = threading.Thread(target=lambda: results.append(evaluate(config(sums, tmp_path), FakeBackend())))
    thread.start()
    thread.join()
    assert results


def test_judging_again(sums, tmp_path):
    first = evaluate(config(sums, tmp_path), FakeBackend())
    path = tmp_path / "run" / "samples.jsonl"
    rows = [{**row, "correct": False, "reason": "another judge"} for row in read_lines(path)]
    write_atomically(path, (json.dumps(row) + "\n" for row in rows))
    again = judge_again(tmp_path / "run")
    assert again["tasks"] == first["tasks"]
    assert "another judge" not in path.read_text()
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join(lines[:-1]))
    with pytest.raises(RunFolderError, match="does not contain the 30 samples"):
        judge_again(tmp_path / "run")
    folder = RunFolder(tmp_path / "run")
    folder.lock()
    with pytest.raises(RunFolderError, match="Another process"):
        judge_again(tmp_path / "run")
    folder.close()


@pytest.mark.slow
@pytest.mark.alone
def test_killed_at_any_moment(tmp_path):
    """SIGKILL, SIGINT and SIGTERM to the real command, each continued, give the run that was never stopped."""
    command = [sys.executable, "-m", "trl_credit.cli", "eval", "--model", "trl_credit:quickstart", "--max_tokens", "40"]
    command += ["--tasks", "trl_credit:arithmetic", "--generated_dataset_size", "20", "--n", "32", "--batch_size", "16"]
    command += ["--output_dir"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    path = tmp_path / "stopped" / "samples.jsonl"
    target = 100
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
        assert target <= count < 640
        target = count + 100
        if number != signal.SIGKILL:
            assert "the same command to continue" in error
    for name in ("stopped", "whole"):
        subprocess.run([*command, str(tmp_path / name)], env=environment, check=True, capture_output=True)
    assert path.read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    stopped, whole = (json.loads((tmp_path / name / "results.json").read_text()) for name in ("stopped", "whole"))
    assert stopped["tasks"] == whole["tasks"]
