"""benchmarks/gpu_check.py: what runs, what is skipped, what fails, and the table. The rehearsal, in `make test-nightly`,
runs every line of it."""

import json
import os
import sys
import time
import urllib.request

import pytest
from helpers import ROOT


@pytest.fixture(autouse=True)
def _benchmarks(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))


H100 = {"index": 0, "name": "H100", "gib": 79.6, "free_gib": 79.0, "error": None}


def environment(*gpus, vllm=None, told="ok"):
    return {
        "torch": {"gpus": list(gpus), "cuda": "13.0"},
        "packages": {"torch": {"installed": "2.13.0"}, "vllm": {"installed": vllm}},
        "imports": {"vllm": told},
        "machine": {"driver": "580.95"},
        "problems": [
            {
                "what": "ninja is missing",
                "why": "",
                "mend": f"{sys.executable} -m pip install ninja --index-url a/b",
                "needed": False,
            }
        ],
    }


@pytest.fixture
def packages(monkeypatch):
    """Names of packages that can be found; a test adds to them."""
    names = {"triton", "vllm"}
    monkeypatch.setattr("importlib.util.find_spec", lambda name: name if name in names else None)
    return names


OK = {"model": {"status": "ok"}}


def test_what_is_skipped(packages):
    from gpu_check import reason_to_skip

    one, two = environment(H100), environment(H100, H100)
    for part in ("environment", "model", "update", "step", "colocate"):
        assert reason_to_skip(part, one, OK, False) is None
    assert "there is one" in reason_to_skip("server", one, OK, False)
    assert reason_to_skip("server", two, OK, False) is None
    broken = H100 | {"error": "no kernel image"}
    assert "there is one" in reason_to_skip("server", environment(H100, broken), OK, False)
    assert "ImportError: x" in reason_to_skip("colocate", environment(H100, told="ImportError: x"), OK, False)
    assert reason_to_skip("colocate", environment(H100, told="no answer after 120 s"), OK, False) is None
    assert reason_to_skip("colocate", None, OK, False) is None  # doctor has failed, which says nothing of vLLM
    assert reason_to_skip("server", None, OK, False) is None
    assert reason_to_skip("update", two, {"model": {"status": "failed"}}, False) == "the model could not be built"
    assert reason_to_skip("update", two, {}, True) == "the model could not be built"
    packages.clear()
    assert reason_to_skip("server", None, OK, True) is None
    assert "-e '.[vllm]'" in reason_to_skip("colocate", None, OK, False)
    assert (
        reason_to_skip("kernel", one, OK, False) == reason_to_skip("tests", None, OK, True) == "triton is not installed"
    )


def test_a_part_sees_one_gpu(monkeypatch):
    from gpu_check import environment_of, gpus_of, visible

    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    broken, busy, empty = H100 | {"error": "x"}, H100 | {"index": 1, "free_gib": 9.0}, H100 | {"index": 2}
    assert visible(environment(H100)) == ["0"]
    assert visible(environment(broken, busy, empty)) == ["2", "1"]
    assert visible(None) == ["0", "1"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6, 7,5")
    assert visible(environment(broken, busy, empty)) == ["5", "7"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6")
    assert visible(None) == ["6"]
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "6,7,5")
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "ACCELERATE_USE_FSDP", "TRITON_INTERPRET"):
        monkeypatch.setenv(name, "1")
    monkeypatch.setenv("HTTP_PROXY", "http://proxy:1")
    found = environment_of("server", ["6", "7"], False)
    assert (found["CUDA_VISIBLE_DEVICES"], found["SECOND_GPU"]) == ("6", "7")
    assert not {"RANK", "WORLD_SIZE", "LOCAL_RANK", "MASTER_PORT", "ACCELERATE_USE_FSDP", "TRITON_INTERPRET"} & set(
        found
    )
    assert urllib.request.proxy_bypass_environment("127.0.0.1", {"no": found["NO_PROXY"]})
    assert found["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment_of("update", ["6"], False)["SECOND_GPU"] == ""
    assert environment_of("kernel", ["6"], True)["CUDA_VISIBLE_DEVICES"] == ""
    assert environment_of("environment", ["6"], False)["CUDA_VISIBLE_DEVICES"] == "6,7,5"
    assert gpus_of(None) == gpus_of({"torch": {"error": "x"}}) == []


def test_the_tests_that_run_are_those_marked(tmp_path):
    from gpu_check import command_of

    command = command_of("tests", tmp_path, False)
    assert command[command.index("-m", 3) + 1] == "gpu"
    named = {os.path.basename(word) for word in command if word.endswith(".py")}
    assert named == {"test_triton.py"}
    assert "interpreted" in command_of("tests", tmp_path, True)
    assert command_of("environment", tmp_path, False)[-3:] == ["--needs", "gpu", "bf16"]
    assert "--needs" not in command_of("environment", tmp_path, True)


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
    said = capsys.readouterr().err
    assert "kernel: failed" in said
    assert f"Note: ninja is missing\n  mend: {sys.executable} -m pip install ninja" in said
    assert (
        found["parts"]["environment"]["found"]["problems"][0]["mend"] == "python -m pip install ninja --index-url a/b"
    )


def test_what_a_part_found_before_it_failed_stays(parts, tmp_path):
    from gpu_check import run_part

    (tmp_path / "kernel.json").write_text('{"of": "an earlier run"}')
    parts["kernel"] = "raise ValueError('why')"
    assert "found" not in run_part("kernel", tmp_path, ["0"], False, 60)
    write = f"import pathlib; pathlib.Path({str(tmp_path / 'kernel.json')!r}).write_text('[1]')"
    parts["kernel"] = f"{write}; raise ValueError('why')"
    result = run_part("kernel", tmp_path, ["0"], False, 60)
    assert (result["status"], result["found"]) == ("failed", [1])


def test_a_table_that_cannot_be_made_stops_nothing(parts, tmp_path, monkeypatch):
    import gpu_check

    monkeypatch.setattr(gpu_check, "markdown", lambda results: {}["comparison"])
    gpu_check.main(["--output_dir", str(tmp_path), "--parts", "model", "step"])
    assert "KeyError: 'comparison'" in (tmp_path / "table.md").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["complete"]


def test_the_model_does_not_stay(parts, tmp_path):
    from gpu_check import main

    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "model.safetensors").touch()
    main(["--output_dir", str(tmp_path), "--parts", "model"])
    assert not (tmp_path / "model").exists()


def test_nothing_fails(parts, tmp_path, packages):
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

    # Less than half of what the model may take
    found = check(tmp_path, False, ["environment", "model"], 0.5)["parts"]
    assert found["model"] == {"status": "skipped", "reason": "the 0.5 minutes are over"}


def test_the_time_runs_out_within_a_part(tmp_path, monkeypatch):
    import gpu_check

    limits = {}

    def late(part, folder, gpus, rehearse, seconds):
        limits[part] = seconds
        if part == "environment":
            return {"status": "ok", "found": environment(H100), "seconds": 1.0}
        return {
            "status": "failed",
            "error": f"it took longer than {seconds:.0f} s",
            "seconds": seconds,
            "found": {"a": 1},
        }

    monkeypatch.setattr(gpu_check, "run_part", late)
    monkeypatch.setattr(gpu_check, "markdown", lambda results: "")
    monkeypatch.setattr(gpu_check, "BUDGETS", {"environment": 9, "kernel": 9, "model": 900})
    found = gpu_check.check(tmp_path, False, ["environment", "kernel", "model"], 10)["parts"]
    assert limits["kernel"] == 9
    assert found["kernel"]["status"] == "failed"  # it had its own time
    assert limits["model"] <= 600
    assert (found["model"]["status"], found["model"]["reason"]) == ("skipped", "the 10 minutes are over")
    assert found["model"]["found"] == {"a": 1}
    assert "error" not in found["model"]


def test_what_fits_the_memory():
    from gpu_parts import FULL, UPDATE, bytes_needed, layout, parameters_of

    assert abs(parameters_of(FULL.model) / 1.5436e9 - 1) < 1e-3  # of Qwen2.5-1.5B
    assert bytes_needed(("trl_kl", "uniform"), 10) == 160  # two policies with Adam, a reference, gradients: 8 x 2 bytes
    pairs = [("trl_kl", "uniform"), ("trl_kl", "gcpo"), ("trl_kl", "dgpo")]
    weights, backward, rest = 2 * 1.5436e9 / 2**30, 118e3 * 8 * 727 * 28 / 2**30, 4
    assert 17.5 < backward < 18.5
    all_of_them, a_pair = 15 * weights + backward + rest, 9 * weights + backward + rest  # about 65 and 48 GiB
    assert layout(all_of_them + 0.1, FULL) == (28, [UPDATE])
    assert layout(all_of_them - 0.1, FULL) == (28, pairs)
    assert layout(a_pair + 0.1, FULL) == (28, pairs)
    assert layout(a_pair - 0.1, FULL) == (21, pairs)
    assert layout(39, FULL) == (21, pairs)  # a card of 40 GB
    assert layout(22, FULL) == (7, pairs)
    assert layout(0, FULL) == (3, pairs)


def test_the_tokenizer():
    from gpu_parts import REHEARSAL, build_tokenizer

    tokenizer = build_tokenizer(REHEARSAL.model["vocab_size"])
    assert len(tokenizer) == REHEARSAL.model["vocab_size"]
    assert tokenizer("Ünkj {x}", add_special_tokens=False)["input_ids"]


def test_a_group_that_fails_does_not_stop_the_others(tmp_path, monkeypatch):
    import gpu_parts

    groups = [["trl_kl", "uniform"], ["trl_kl", "gcpo"], ["trl_kl", "dgpo"]]
    (tmp_path / "model.json").write_text(json.dumps({"together": {"update": groups}}))

    def group(folder, part, sizes, names, more):
        if "gcpo" in names:
            raise RuntimeError("out of memory")
        return {"variants": {name: {} for name in names}, "ratios": {names[1]: {"median": 1.0}}}

    monkeypatch.setattr(gpu_parts, "_group", group)
    with pytest.raises(RuntimeError, match=r"trl_kl, gcpo:\n(.|\n)*out of memory"):
        gpu_parts.update(tmp_path, gpu_parts.REHEARSAL)
    found = json.loads((tmp_path / "update.json").read_text())
    assert found["ratios"].keys() == {"uniform", "dgpo"}
    assert found["variants"].keys() == {"trl_kl", "uniform", "dgpo"}


def results(**changed):
    times = {"rollout": 0.01, "credit": 0.002, "loss": 0.1, "total": 0.112, "peak_mb": 9000.0}
    ratio = {"fastest": 1.03, "median": 1.04, "range": [1.0, 1.045], "one_loss": 1.035}
    slow = ratio | {"range": [1.037, 1.045]}
    measured = {
        "variants": {"trl_kl": times, "uniform": times, "gcpo": times},
        "ratios": {"uniform": ratio, "gcpo": ratio, "dgpo": slow},
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
    assert "| `gcpo` / `trl_kl` | 1.040 (1.000 to 1.045) | 1.030 | 1.035 | 1.05 (met) |" in text
    assert "| `gcpo` / `trl_kl` | 1.040 (1.000 to 1.045) | 1.030 | 1.035 | 1.036 (within noise) |" in text
    assert "| `dgpo` / `trl_kl` | 1.040 (1.037 to 1.045) | 1.030 | 1.035 | 1.036 (missed) |" in text
    assert "| `uniform` / `trl_kl` | 1.040 (1.000 to 1.045) | 1.030 | 1.035 |  |" in text
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
    broken["parts"]["update"] |= {"status": "failed", "error": "out of memory"}
    broken["parts"]["update"]["found"]["ratios"].pop("uniform")
    broken["parts"]["environment"] = {"status": "failed", "seconds": 3.0, "error": "no answer"}
    text = markdown(broken)
    assert "| `kernel` | failed | 3.0 | it ended with status 1 |" in text
    assert "ValueError: why" in text
    assert text.count("```") == 4
    assert "no GPU" in text
    assert "One update" in text  # what it found before it failed
    half = results()
    half["parts"]["kernel"] |= {"status": "failed", "error": "x"}
    del half["parts"]["kernel"]["found"]["comparison"]
    assert "| squared_hellinger | 0.100 |" in markdown(half)


@pytest.mark.slow
@pytest.mark.alone
@pytest.mark.nightly
def test_the_rehearsal(tmp_path):
    """Every line, at small sizes on the CPU, and the kernel in Triton's interpreter."""
    from gpu_check import main

    main(["--rehearse", "--output_dir", str(tmp_path)])
    found = json.loads((tmp_path / "results.json").read_text())
    assert {name: result["status"] for name, result in found["parts"].items()} == dict.fromkeys(
        ("environment", "tests", "model", "kernel", "update", "step", "colocate", "server"), "ok"
    )
    together = {part: found["parts"][part]["found"]["together"] for part in ("update", "step")}
    assert together["update"] == [["trl_kl", "uniform", "gcpo", "dgpo"]]  # both ways that memory may ask for
    assert together["step"] == [["trl_kl", "gcpo"], ["trl_kl", "dgpo"]]
    text = (tmp_path / "table.md").read_text()
    for part in ("gcpo", "dgpo"):
        assert text.count(f"| `{part}` / `trl_kl` |") == 2  # the update and the step
    assert "weights by NCCL" in text
