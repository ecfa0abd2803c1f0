"""benchmarks/gpu_check.py: what runs, what is skipped, what fails, and the table. The rehearsal runs every line of it."""

import json
import os
import sys
import time

import pytest
from helpers import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


H100 = {"index": 0, "name": "H100", "gib": 79.6, "error": None}


def environment(*gpus, vllm=None, told="ok"):
    return {
        "torch": {"gpus": list(gpus), "cuda": "13.0"},
        "packages": {"torch": {"installed": "2.13.0"}, "vllm": {"installed": vllm}},
        "imports": {"vllm": told},
        "machine": {"driver": "580.95"},
    }


OK = {"model": {"status": "ok"}}


def test_what_is_skipped():
    from gpu_check import reason_to_skip

    one, two = environment(H100, vllm="0.30.0"), environment(H100, H100, vllm="0.30.0")
    for part in ("environment", "model", "update", "step", "colocate"):
        assert reason_to_skip(part, one, OK, False) is None
    assert "there is one" in reason_to_skip("server", one, OK, False)
    assert reason_to_skip("server", two, OK, False) is None
    broken = H100 | {"error": "no kernel image"}
    assert "there is one" in reason_to_skip("server", environment(H100, broken, vllm="0.30.0"), OK, False)
    assert "not installed" in reason_to_skip("colocate", environment(H100), OK, False)
    assert "ImportError: x" in reason_to_skip(
        "colocate", environment(H100, vllm="0.30", told="ImportError: x"), OK, False
    )
    assert reason_to_skip("update", two, {"model": {"status": "failed"}}, False) == "the model could not be built"
    assert reason_to_skip("update", two, {}, True) == "the model could not be built"
    assert reason_to_skip("server", None, OK, True) is None
    assert "not installed" in reason_to_skip("colocate", None, OK, False)  # doctor has failed


def test_a_part_sees_one_gpu(monkeypatch):
    from gpu_check import environment_of, gpus_of, visible

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert visible(1) == ["0"]
    assert visible(8) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7,5")
    assert visible(3) == ["6", "7"]
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    found = environment_of("server", ["6", "7"], False)
    assert (found["CUDA_VISIBLE_DEVICES"], found["SECOND_GPU"]) == ("6", "7")
    assert "TRITON_INTERPRET" not in found
    assert environment_of("update", ["6"], False)["SECOND_GPU"] == ""
    assert environment_of("kernel", ["6"], True)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment_of("environment", ["6"], False)["CUDA_VISIBLE_DEVICES"] == "6,7,5"
    assert gpus_of(None) == gpus_of({"torch": {"error": "x"}}) == []


def test_the_tests_that_run_are_those_marked(tmp_path):
    from gpu_check import command_of

    command = command_of("tests", tmp_path, False)
    assert command[command.index("-m", 3) + 1] == "gpu"
    assert [os.path.basename(word) for word in command if word.endswith(".py")] == ["test_triton.py"]


@pytest.mark.parametrize(
    ("counts", "good"),
    [((8, 0, 0, 1), True), ((8, 1, 0, 0), False), ((8, 0, 1, 0), False), ((8, 0, 0, 8), False), ((0, 0, 0, 0), False)],
)
def test_reports_of_tests(tmp_path, counts, good):
    from gpu_check import read_junit

    file = tmp_path / "tests.xml"
    tests, failures, errors, skipped = counts
    file.write_text(
        f'<testsuites><testsuite tests="{tests}" failures="{failures}" errors="{errors}" skipped="{skipped}"/></testsuites>'
    )
    if good:
        assert read_junit(file)["passed"] == 7
    else:
        with pytest.raises(AssertionError):
            read_junit(file)


def test_a_command_that_fails_and_one_that_hangs(tmp_path):
    from gpu_check import run

    log = tmp_path / "part.txt"
    assert run([sys.executable, "-c", "print('fine')"], dict(os.environ), log, 60) is None
    assert log.read_text() == "fine\n"
    problem = run([sys.executable, "-c", "print('said'); raise ValueError('why')"], dict(os.environ), log, 60)
    assert problem.startswith("it ended with status 1\nsaid")
    assert problem.endswith("ValueError: why")
    child = f"import time, pathlib\nwhile True:\n    pathlib.Path({str(tmp_path / 'alive')!r}).touch()\n    time.sleep(0.05)"
    code = f"import subprocess, sys\nsubprocess.run([sys.executable, '-c', {child!r}])"
    started = time.monotonic()
    assert run([sys.executable, "-c", code], dict(os.environ), log, 3).startswith("it took longer than 3 s")
    assert time.monotonic() - started < 9
    (tmp_path / "alive").unlink()
    time.sleep(0.5)
    assert not (tmp_path / "alive").exists()  # what it started is gone, too


@pytest.fixture
def parts(monkeypatch):
    """Commands of parts that a test writes."""
    import gpu_check

    written = {"environment": f"print({json.dumps(json.dumps(environment(H100)))})"}

    def command(part, folder, rehearse):
        write = f"import pathlib; pathlib.Path({str(folder / part)!r} + '.json').write_text('{{}}')"
        return [sys.executable, "-c", written.get(part, write)]

    monkeypatch.setattr(gpu_check, "command_of", command)
    monkeypatch.setattr(gpu_check, "markdown", lambda results: "table\n")
    return written


def test_a_part_that_fails_does_not_stop_the_rest(parts, tmp_path, capsys):
    from gpu_check import main

    parts["environment"] += "; raise SystemExit(1)"  # doctor found something wrong
    parts["kernel"] = "raise ValueError('why')"
    parts["update"] = "pass"  # leaves no result
    with pytest.raises(SystemExit) as error:
        main(["--output_dir", str(tmp_path / "out"), "--parts", "kernel", "update", "step", "colocate"])
    assert error.value.code == 1
    found = json.loads((tmp_path / "out" / "results.json").read_text())
    states = {name: result["status"] for name, result in found["parts"].items()}
    assert states == {
        "environment": "ok", "model": "ok", "kernel": "failed", "update": "failed", "step": "ok", "colocate": "skipped",
    }  # fmt: skip
    assert found["complete"] is True
    assert "ValueError: why" in found["parts"]["kernel"]["error"]
    assert "FileNotFoundError" in found["parts"]["update"]["error"]
    assert "kernel: failed" in capsys.readouterr().err


def test_nothing_fails(parts, tmp_path):
    from gpu_check import main

    main(["--output_dir", str(tmp_path), "--parts", "model", "server"])
    assert json.loads((tmp_path / "results.json").read_text())["parts"]["server"]["status"] == "skipped"


def test_no_gpu(parts, tmp_path, capsys):
    from gpu_check import main

    parts["environment"] = f"print({json.dumps(json.dumps(environment()))})"
    with pytest.raises(SystemExit) as error:
        main(["--output_dir", str(tmp_path)])
    assert error.value.code == 2
    assert "there is no GPU" in capsys.readouterr().err


def test_no_time_is_left(parts, tmp_path):
    from gpu_check import check

    found = check(tmp_path, False, ["environment", "model"], 0.01)["parts"]
    assert found["model"] == {"status": "skipped", "reason": "the 0.01 minutes are over"}


def test_what_fits_the_memory():
    from gpu_parts import FULL, STEP, UPDATE, bytes_needed, layout, parameters_of

    assert abs(parameters_of(FULL.model) / 1.5436e9 - 1) < 1e-3  # of Qwen2.5-1.5B
    assert bytes_needed(("trl_kl", "uniform"), 10) == 160  # two policies with Adam, a reference, gradients: 8 x 2 bytes
    layers, groups = layout(138, FULL.model)
    assert (layers, groups) == (28, [UPDATE])
    assert layout(78, FULL.model) == (28, [UPDATE])
    pairs = [("trl_kl", "uniform"), ("trl_kl", "gcpo"), ("trl_kl", "dgpo")]
    assert layout(44, FULL.model) == (28, pairs)
    layers, groups = layout(23, FULL.model)
    assert 1 <= layers < 28
    assert groups == pairs
    assert layout(0, FULL.model)[1] == pairs
    assert set(STEP) <= set(UPDATE)


def test_the_rehearsal_has_every_size():
    from gpu_parts import FULL, REHEARSAL, build_tokenizer

    assert FULL.model.keys() == REHEARSAL.model.keys()
    tokenizer = build_tokenizer(REHEARSAL.model["vocab_size"])
    assert len(tokenizer) == REHEARSAL.model["vocab_size"]
    assert tokenizer("Ünkj {x}", add_special_tokens=False)["input_ids"]


def results(**changed):
    times = {"rollout": 0.01, "credit": 0.002, "loss": 0.1, "total": 0.112, "peak_mb": 9000.0}
    ratio = {"fastest": 1.03, "median": 1.04, "range": [1.0, 1.06], "one_loss": 1.035}
    measured = {
        "variants": {"trl_kl": times, "uniform": times, "gcpo": times},
        "ratios": {"uniform": ratio, "gcpo": ratio},
        "together": [["trl_kl", "uniform", "gcpo"]],
    }
    fold = {
        "seconds": 1e-4,
        "torch_seconds": 2e-3,
        "gb_per_s": 2684.0,
        "of_copy": 0.9,
        "largest_relative_difference": 1e-6,
    }
    update = {"loss": 0.01, "grad_norm": 1.0, "step_time": 2.0, "sampling/sampling_logp_difference/mean": 0.008}
    found = {
        "environment": environment(H100, vllm="0.30.0"),
        "tests": {"passed": 8},
        "model": {"parameters": 1.54e9, "dtype": "bfloat16", "layers": 28, "of_layers": 28},
        "kernel": {
            "tile": [16384, 4096], "copy_gb_per_s": 2900.0, "outputs": {"squared_hellinger": fold}, "products_seconds": 0.01,
            "comparison": {"squared_hellinger": {"seconds": 0.011, "of_products": 1.1, "mb": 70.0}},
        },
        "update": measured, "step": measured,
        "colocate": {"seconds": 9.0, "updates": [update] * 3},
    }  # fmt: skip
    parts = {name: {"status": "ok", "seconds": 1.5, "found": value} for name, value in found.items()}
    parts["server"] = {"status": "skipped", "reason": "there is one GPU"}
    return {"date": "2026-11-29", "rehearsal": False, "complete": True, "parts": parts} | changed


def test_the_table():
    from gpu_table import markdown

    text = markdown(results())
    assert "H100 (79.6 GiB), driver 580.95, CUDA 13.0, torch 2.13.0, vllm 0.30.0." in text
    assert "| `server` | skipped |  | there is one GPU |" in text
    assert "| `tests` | ok | 1.5 | 8 passed |" in text
    assert "| `gcpo` / `trl_kl` | 1.040 (1.000 to 1.060) | 1.030 | 1.035 | 1.05 (met) |" in text
    assert "| `gcpo` / `trl_kl` | 1.040 (1.000 to 1.060) | 1.030 | 1.035 | 1.036 (missed) |" in text
    assert "| `uniform` / `trl_kl` | 1.040 (1.000 to 1.060) | 1.030 | 1.035 |  |" in text
    assert "| `gcpo` | 10.0 | 2.0 | 100.0 | 112.0 | 9000 |" in text
    assert "| squared_hellinger | 0.100 | 2.000 | 2684 | 90% | 1.0e-06 |" in text
    assert "| 3 | 2 | 0.01 | 1 | 0.008 |" in text
    for block in text.split("\n\n"):
        if block.startswith("|"):
            assert len({line.count("|") for line in block.splitlines()}) == 1


def test_the_table_of_a_rehearsal_and_of_a_failure():
    from gpu_table import markdown

    text = markdown(results(rehearsal=True, complete=False))
    assert "rehearsal" in text
    assert "not finished" in text
    assert "1.05 (not judged)" in text
    assert "| `colocate` | ok | 1.5 | without vLLM |" in text
    assert "In the place of vLLM in the trainer's process: transformers, without vLLM, three updates" in text
    assert "without vLLM" not in markdown(results())
    broken = results()
    broken["parts"]["kernel"] = {
        "status": "failed",
        "seconds": 3.0,
        "error": "it ended with status 1\n```\nValueError: why",
    }
    broken["parts"]["environment"] = {"status": "failed", "seconds": 3.0, "error": "no answer"}
    text = markdown(broken)
    assert "| `kernel` | failed | 3.0 | it ended with status 1 |" in text
    assert "ValueError: why" in text
    assert text.count("```") == 2
    assert "no GPU" in text


@pytest.mark.slow
@pytest.mark.alone
def test_the_rehearsal(tmp_path):
    """Every line, at small sizes on the CPU, and the kernel in Triton's interpreter."""
    from gpu_check import main

    main(["--rehearse", "--output_dir", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert {name: result["status"] for name, result in found["parts"].items()} == dict.fromkeys(
        ("environment", "tests", "model", "kernel", "update", "step", "colocate", "server"), "ok"
    )
    text = (tmp_path / "table.md").read_text()
    for part in ("gcpo", "dgpo"):
        assert text.count(f"| `{part}` / `trl_kl` |") == 2  # the update and the step
    assert "weights by NCCL" in text
