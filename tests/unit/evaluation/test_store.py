"""Folders of evaluations: stopped, damaged, extended."""

import errno
import json
import os
import signal
from pathlib import Path

import pytest
from support.evaluation import FakeBackend, config, fail

from trl_credit._util.files import RunFolderError, read_lines
from trl_credit.evaluation import evaluate
from trl_credit.evaluation.backends.base import BackendError
from trl_credit.evaluation.compare import compare_runs
from trl_credit.evaluation.run import Interrupted, judge_again
from trl_credit.evaluation.store import RunFolder


# ---- nothing lost


def interrupted(settings, action, after=11, order=3):
    backend = FakeBackend(stop_after=after, action=action, order=order)
    with pytest.raises((Interrupted, RuntimeError, RunFolderError, BackendError)) as caught:
        evaluate(settings, backend)
    return caught.value


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_is_finished(sums, tmp_path, number):
    settings = config(sums, tmp_path)
    before = signal.getsignal(number)
    error = interrupted(settings, lambda: os.kill(os.getpid(), number))
    assert isinstance(error, Interrupted)
    assert error.exit_code == 128 + number
    assert "11 samples are saved. Run the same command to continue" in str(error)
    assert signal.getsignal(number) == before
    assert len(read_lines(tmp_path / "run" / "samples.jsonl")) == 11
    backend = FakeBackend()
    results = evaluate(settings, backend)
    assert len(backend.made) == 30 - 11
    whole = evaluate(config(sums, tmp_path, output_dir=str(tmp_path / "whole")), FakeBackend())
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == (tmp_path / "whole" / "samples.jsonl").read_bytes()
    assert results["tasks"] == whole["tasks"]
    assert results["fingerprint"]["run"] == whole["fingerprint"]["run"]


@pytest.mark.parametrize("cut", [1, 7, 40])
def test_a_half_written_line_is_repaired(sums, tmp_path, caplog, cut):
    settings = config(sums, tmp_path)
    interrupted(settings, fail)
    path = tmp_path / "run" / "samples.jsonl"
    path.write_bytes(path.read_bytes()[:-cut])
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 20
    assert "1 half-written line(s) removed" in caplog.text
    assert len(read_lines(path)) == 30


def test_lines_that_are_no_samples_are_made_again(sums, tmp_path):
    settings = config(sums, tmp_path)
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
def test_damaged_samples_are_made_again(sums, tmp_path, caplog, kind):
    evaluate(config(sums, tmp_path), FakeBackend())
    path = tmp_path / "run" / "samples.jsonl"
    whole = path.read_text()
    lines = whole.splitlines()
    lines[7] = damage(lines[7], kind)
    path.write_text("\n".join(lines) + "\n")
    with pytest.raises(RunFolderError, match="does not contain the 30 samples"):
        judge_again(tmp_path / "run")
    backend = FakeBackend()
    evaluate(config(sums, tmp_path), backend)
    assert len(backend.made) == 1
    assert path.read_text() == whole
    said = "1 half-written line(s) removed" if kind == "nested" else "1 damaged sample(s) are made again"
    assert caplog.text.count(said) == 1


def test_a_folder_without_checksums_goes_on(sums, tmp_path, caplog):
    settings = config(sums, tmp_path)
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


def test_samples_of_other_processes_are_taken_in(sums, tmp_path):
    settings = config(sums, tmp_path)
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
def test_other_settings_are_refused(sums, tmp_path, change, shown):
    evaluate(config(sums, tmp_path), FakeBackend())
    before = (tmp_path / "run" / "samples.jsonl").read_bytes()
    with pytest.raises(RunFolderError, match=shown):
        evaluate(config(sums, tmp_path, **change), FakeBackend())
    assert (tmp_path / "run" / "samples.jsonl").read_bytes() == before


def test_a_run_that_did_not_start_leaves_its_folder_free(sums, tmp_path):
    """An engine that does not start asks for other settings."""
    FakeBackend.notes = lambda self: ["of the failed start"]
    try:
        interrupted(config(sums, tmp_path), fail, after=0)
    finally:
        del FakeBackend.notes
    assert read_lines(tmp_path / "run" / "samples.jsonl") == []
    interrupted(config(sums, tmp_path, temperature=0.5), fail, after=1)
    run = json.loads((tmp_path / "run" / "run.json").read_text())
    assert run["identity"]["sampling"]["temperature"] == 0.5
    assert run["notes"] == []
    with pytest.raises(RunFolderError, match=r"sampling.temperature: 0.5 -> 1.0"):
        evaluate(config(sums, tmp_path), FakeBackend())
    (tmp_path / "run" / "samples.jsonl").rename(tmp_path / "run" / "samples.rank1.jsonl")
    with pytest.raises(RunFolderError, match=r"sampling.temperature: 0.5 -> 1.0"):
        evaluate(config(sums, tmp_path), FakeBackend())


def test_another_model_and_other_data_are_refused(sums, tmp_path):
    evaluate(config(sums, tmp_path), FakeBackend())
    with pytest.raises(RunFolderError, match=r'backend.model: "A" -> "B"'):
        evaluate(config(sums, tmp_path), FakeBackend(model="B"))
    Path(sums).write_text('{"problem": "1+1", "answer": "2"}\n' * 6)
    with pytest.raises(RunFolderError, match=r"tasks.sums.sha256"):
        evaluate(config(sums, tmp_path), FakeBackend())


def test_extending_a_run(sums, tmp_path):
    evaluate(config(sums, tmp_path), FakeBackend())
    other = tmp_path / "other.jsonl"
    other.write_text('{"problem": "1+1", "answer": "2"}\n')
    backend = FakeBackend()
    results = evaluate(config(sums, tmp_path, n=8, tasks=[sums, str(other)], extend=True), backend)
    assert len(backend.made) == 6 * 3 + 8
    fresh = config(sums, tmp_path, n=8, tasks=[sums, str(other)], output_dir=str(tmp_path / "fresh"))
    assert results["tasks"] == evaluate(fresh, FakeBackend())["tasks"]
    with pytest.raises(RunFolderError, match="answer_pattern"):  # more than an extension
        evaluate(config(sums, tmp_path, n=9, extend=True, answer_pattern="(x)"), FakeBackend())


def test_an_unfinished_extension_keeps_the_results(sums, tmp_path):
    evaluate(config(sums, tmp_path, report=True), FakeBackend())
    interrupted(config(sums, tmp_path, n=8, extend=True), fail, after=2)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["settings"]["n"] == 5
    assert compare_runs(tmp_path / "run", tmp_path / "run")["overall"]["difference"] == 0
    with pytest.raises(RunFolderError, match="does not contain the 30 samples of its results"):
        judge_again(tmp_path / "run")


def test_two_processes_on_one_folder(sums, tmp_path):
    seen = []

    def second():
        with pytest.raises(RunFolderError, match="Another process is writing") as caught:
            evaluate(config(sums, tmp_path), FakeBackend())
        seen.append(caught.value)

    backend = FakeBackend(stop_after=3, action=second)
    results = evaluate(config(sums, tmp_path), backend)
    assert len(seen) == 1
    assert results["tasks"]["sums"]["n"] == 5
    evaluate(config(sums, tmp_path), FakeBackend())  # and given back


def test_a_full_disk(sums, tmp_path, monkeypatch):
    settings = config(sums, tmp_path)

    class Full:
        def __init__(self, file):
            self.file, self.written = file, 0

        def write(self, sums):
            self.written += 1
            if self.written > 9:
                self.file.write(sums[:20])  # some of it fits
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return self.file.write(sums)

        def __getattr__(self, name):
            return getattr(self.file, name)

    real = Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *a, **k: Full(real(self, *a, **k)) if "ab" in a else real(self, *a, **k)
    )
    with pytest.raises(RunFolderError, match=r"No space left on device. Earlier results are kept"):
        evaluate(settings, FakeBackend())
    monkeypatch.undo()
    assert len((tmp_path / "run" / "samples.jsonl").read_text().splitlines()) == 9
    backend = FakeBackend()
    evaluate(settings, backend)
    assert len(backend.made) == 21


def test_a_full_disk_at_the_end(sums, tmp_path, monkeypatch):
    """The report is what does not fit."""

    def full(*arguments):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    evaluate(config(sums, tmp_path), FakeBackend())
    monkeypatch.setattr("os.replace", full)
    with pytest.raises(RunFolderError, match=r"Cannot write .*: No space left on device. Earlier results are kept"):
        evaluate(config(sums, tmp_path), FakeBackend())
    assert not [path for path in (tmp_path / "run").iterdir() if path.name.endswith(".tmp")]


def test_what_a_killed_process_left_is_removed(sums, tmp_path):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".samples.jsonl.abc.tmp").write_text("x")
    evaluate(config(sums, tmp_path), FakeBackend())
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        *(".lock", "problems.jsonl", "results.json", "run.json", "samples.jsonl"),
    ]


@pytest.mark.parametrize("text", ["nonsense", "[1]", "{}", '{"identity": {"tasks": 3}}'])
def test_damaged_files_are_named(sums, tmp_path, text):
    evaluate(config(sums, tmp_path), FakeBackend())
    (tmp_path / "run" / "results.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"results.json is n"):
        compare_runs(tmp_path / "run", tmp_path / "run")
    (tmp_path / "run" / "run.json").write_text(text)
    with pytest.raises(RunFolderError, match=r"run.json (was not|is not)"):
        evaluate(config(sums, tmp_path), FakeBackend())


def test_a_run_without_its_problems(sums, tmp_path):
    evaluate(config(sums, tmp_path), FakeBackend())
    (tmp_path / "run" / "problems.jsonl").unlink()
    with pytest.raises(RunFolderError, match="does not contain the 0 samples"):
        judge_again(tmp_path / "run")


def test_a_run_written_with_a_key_goes_on(tmp_path):
    folder = RunFolder(tmp_path)
    identity = {"n": 1, "tasks": {}, "backend": {"vllm_kwargs": {"hf_token": "hf_SECRET"}}}
    (tmp_path / "run.json").write_text(json.dumps({"format": 1, "identity": identity, "notes": []}))
    folder.check({**identity, "backend": {"vllm_kwargs": {"hf_token": "***"}}})
    assert "SECRET" not in (tmp_path / "run.json").read_text()
    (tmp_path / "samples.jsonl").write_text("{}\n")
    with pytest.raises(RunFolderError, match="n: 1 -> 2"):
        folder.check({**identity, "n": 2})


def test_a_run_of_an_earlier_release_goes_on(tmp_path):
    folder = RunFolder(tmp_path)
    identity = {"n": 1, "tasks": {}, "backend": {"name": "fake", "model": "A"}}
    folder.check({**identity, "backend": {"name": "fake", "model": "A", "speed": 3}})
    (tmp_path / "samples.jsonl").write_text("{}\n")

    def upgraded(backend):
        return {name: value for name, value in backend.items() if name != "speed"}

    with pytest.raises(RunFolderError, match=r"backend.speed: 3 -> null"):
        folder.check(identity)
    with pytest.raises(RunFolderError, match=r'backend.name: "fake" -> "other"\n  backend.speed: 3 -> null'):
        folder.check({**identity, "backend": {"name": "other", "model": "A"}}, upgraded=upgraded)
    folder.check(identity, upgraded=upgraded)
    assert json.loads((tmp_path / "run.json").read_text())["identity"] == identity


def test_a_run_asks_its_backend_about_earlier_releases(sums, tmp_path, monkeypatch):
    evaluate(config(sums, tmp_path), FakeBackend())
    monkeypatch.setattr(FakeBackend, "identity", lambda self: {"model": "A", "new": 1})
    with pytest.raises(RunFolderError, match=r"backend.new: null -> 1"):
        evaluate(config(sums, tmp_path), FakeBackend())
    monkeypatch.setattr(FakeBackend, "upgraded", lambda self, identity: {**identity, "new": 1})
    evaluate(config(sums, tmp_path), FakeBackend())


def test_a_folder_that_cannot_be_made(sums, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="`output_dir`: cannot write to"):
        evaluate(config(sums, tmp_path, output_dir=str(tmp_path / "file" / "run")), FakeBackend())


def test_samples_without_their_run(sums, tmp_path):
    evaluate(config(sums, tmp_path), FakeBackend())
    (tmp_path / "run" / "run.json").unlink()
    with pytest.raises(RunFolderError, match=r"holds samples but no run.json"):
        evaluate(config(sums, tmp_path), FakeBackend())
