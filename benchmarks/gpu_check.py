"""Checks this package on a GPU in ten minutes, and writes the figures for benchmarks/README.md.

    python benchmarks/gpu_check.py                 # or `make gpu-check`
    python benchmarks/gpu_check.py --rehearse      # the same lines at small sizes, without a GPU

Runs the tests marked `gpu`; the Triton kernel against torch (values, time, bandwidth); a model of Qwen2.5-1.5B's sizes with
random weights in bfloat16: updates and whole steps of TRL with a KL penalty, `uniform`, GCPO and DGPO in turn, with their
peak memory; and three updates with vLLM in the trainer's process and as a server that gets weights by NCCL. Each part runs
in a process of its own with a time limit. One that fails is recorded with its traceback, and the others go on. A part that
cannot run here (no vLLM, one GPU) is skipped with the reason. Nothing is downloaded.

Writes results.json and table.md to the output folder. Exits with 1 if a part failed, with 2 if there is no GPU.
"""

import argparse
import contextlib
import datetime
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import traceback
import xml.etree.ElementTree as ElementTree
from pathlib import Path

from gpu_table import markdown


HERE = Path(__file__).resolve().parent
ROOT = HERE.parent
# Seconds that each part may take. All of them together may not take longer than `--minutes`
BUDGETS = {
    "environment": 240, "tests": 150, "model": 90, "kernel": 90, "update": 200, "step": 150, "colocate": 200, "server": 240,
}  # fmt: skip
_SLOWER = 5  # a rehearsal, on a CPU with other work
# What a launcher leaves in its processes, and in a shell that one of them opened
_LAUNCH = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")
_LATE = "it took longer than"


def gpus_of(environment: dict | None) -> list[dict]:
    """GPUs in doctor's report that compute."""
    torch = (environment or {}).get("torch") or {}
    return [gpu for gpu in torch.get("gpus", []) if gpu.get("error") is None]


def reason_to_skip(part: str, environment: dict | None, results: dict, rehearse: bool) -> str | None:
    """Why a part cannot run here; `None` if it can.

    Args:
        part: The part.
        environment: The report of `trl-credit doctor --json`; `None` if there is none.
        results: The parts so far.
        rehearse: Whether this is a rehearsal, which needs no GPU and no vLLM.
    """
    if part in ("update", "step", "colocate", "server") and results.get("model", {}).get("status") != "ok":
        return "the model could not be built"
    if part in ("tests", "kernel") and importlib.util.find_spec("triton") is None:
        return "triton is not installed"
    if rehearse:
        return None
    if part in ("colocate", "server"):
        if importlib.util.find_spec("vllm") is None:
            return "vllm is not installed (.venv/bin/python -m pip install -c constraints.txt -e '.[vllm]')"
        told = ((environment or {}).get("imports") or {}).get("vllm", "ok")
        if told != "ok" and not told.startswith("no answer after"):
            return f"vllm cannot be imported: {told}"
    if part == "server" and environment is not None and len(gpus_of(environment)) < 2:
        return "NCCL takes the weights from one GPU to another, and there is one"
    return None


def visible(environment: dict | None) -> list[str]:
    """The two GPUs with the most free memory among those that compute, as CUDA_VISIBLE_DEVICES names them.

    Without doctor's report, the first two.
    """
    free = sorted(gpus_of(environment), key=lambda gpu: -gpu["free_gib"])
    places = [gpu["index"] for gpu in free] or [0, 1]
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return [named[place] if named else str(place) for place in places if not named or place < len(named)][:2]


def command_of(part: str, folder: Path, rehearse: bool) -> list[str]:
    """The command that runs a part."""
    if part == "environment":
        return [
            sys.executable,
            "-m",
            "trl_credit.cli",
            "doctor",
            "--json",
            *(["--needs", "gpu", "bf16"] * (not rehearse)),
        ]
    if part == "tests":
        files = [str(path) for path in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in path.read_text()]
        chosen = ["-k", "interpreted"] if rehearse else ["-m", "gpu"]
        report = f"--junitxml={folder / 'tests.xml'}"
        return [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-q", report, *chosen, *files]
    return [sys.executable, str(HERE / "gpu_parts.py"), part, str(folder), *["--rehearse"] * rehearse]


def environment_of(part: str, gpus: list[str], rehearse: bool) -> dict[str, str]:
    """Variables of a part's process. It sees one GPU: with several, transformers would spread each batch over them."""
    left = {
        name: value for name, value in os.environ.items() if not name.startswith("ACCELERATE_") and name not in _LAUNCH
    }
    found = left | {
        "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "PYTHONUNBUFFERED": "1",
        # The server is on this machine: not through a proxy, nor under a name of it that does not resolve
        "NO_PROXY": "127.0.0.1,localhost", "no_proxy": "127.0.0.1,localhost", "VLLM_HOST_IP": "127.0.0.1",
        "VLLM_NO_USAGE_STATS": "1",
    }  # fmt: skip
    found["PYTHONPATH"] = os.pathsep.join(filter(None, (str(ROOT), os.environ.get("PYTHONPATH"))))
    if part == "environment":
        return found
    if rehearse:
        return found | {"CUDA_VISIBLE_DEVICES": ""} | ({"TRITON_INTERPRET": "1"} if part == "kernel" else {})
    found.pop("TRITON_INTERPRET", None)
    return found | {"CUDA_VISIBLE_DEVICES": gpus[0], "SECOND_GPU": gpus[1] if len(gpus) > 1 else ""}


def run(command: list[str], environment: dict[str, str], log: Path, seconds: float) -> str | None:
    """Runs a part's command to its end or its limit, with whatever it started. Returns what went wrong, or `None`."""
    with open(log, "w") as out, open(log.with_suffix(".err.txt"), "w") as err:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=out, stderr=err, start_new_session=True
        )
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            return f"{_LATE} {seconds:.0f} s\n{_end(log)}"
        finally:
            with contextlib.suppress(OSError):  # what is left of its group, such as vLLM's engine
                os.killpg(process.pid, signal.SIGKILL)
            with contextlib.suppress(subprocess.TimeoutExpired):  # a process that waits for a driver cannot be killed
                process.wait(10)
    return None if code == 0 else f"it ended with status {code}\n{_end(log)}"


def _end(log: Path, length: int = 4000) -> str:
    """The end of what a part printed, the traceback last."""
    texts = (path.read_text(errors="replace").strip()[-length:] for path in (log, log.with_suffix(".err.txt")))
    return "\n".join(filter(None, texts))


def read_junit(path: Path) -> dict:
    """Counts of a test report.

    Raises:
        AssertionError: A test failed, or none ran.
    """
    suites = list(ElementTree.parse(path).getroot().iter("testsuite"))
    total = {name: sum(int(s.get(name, 0)) for s in suites) for name in ("tests", "failures", "errors", "skipped")}
    total["passed"] = total["tests"] - total["failures"] - total["errors"] - total["skipped"]
    if total["failures"] or total["errors"] or not total["passed"]:
        raise AssertionError(f"tests: {total}")
    return total


def answer_of(part: str, folder: Path, log: Path) -> dict:
    """What a part found.

    Raises:
        Exception: It left nothing that can be read.
    """
    if part == "environment":
        from trl_credit._util.text import without_folders

        # Its commands name this Python, by a folder
        return without_folders(json.loads(log.read_text().replace(sys.executable, "python")))
    if part == "tests":
        return read_junit(folder / "tests.xml")
    return json.loads((folder / f"{part}.json").read_text())


def run_part(part: str, folder: Path, gpus: list[str], rehearse: bool, seconds: float) -> dict:
    """Runs a part. Never raises: what went wrong is in the result, with what was found until then."""
    started, log, result = time.perf_counter(), folder / f"{part}.txt", {"status": "ok"}
    try:
        for stale in (f"{part}.json", f"{part}.xml"):
            (folder / stale).unlink(missing_ok=True)
        problem = run(command_of(part, folder, rehearse), environment_of(part, gpus, rehearse), log, seconds)
        # Doctor ends with 1 if it found something wrong, and has reported it all the same
        if problem is None or (part == "environment" and "status 1" in problem.splitlines()[0]):
            result["found"] = answer_of(part, folder, log)
        else:
            result = {"status": "failed", "error": problem}
            with contextlib.suppress(Exception):
                result["found"] = answer_of(part, folder, log)
    except Exception:
        result = {"status": "failed", "error": f"{traceback.format_exc()}\n{_end(log) if log.exists() else ''}"}
    return result | {"seconds": round(time.perf_counter() - started, 1)}


def check(folder: Path, rehearse: bool, parts: list[str], minutes: float) -> dict:
    """Runs the parts, one after another, and writes the results after each."""
    slower = _SLOWER if rehearse else 1
    ends = time.perf_counter() + 60 * minutes * slower
    results: dict = {
        "date": datetime.date.today().isoformat(),
        "rehearsal": rehearse,
        "complete": False,
        "parts": {},
    }
    done, environment, gpus = results["parts"], None, visible(None)
    over = f"the {minutes:g} minutes are over"
    for part in parts:
        left = ends - time.perf_counter()
        reason = reason_to_skip(part, environment, done, rehearse)
        limit = BUDGETS[part] * slower
        if reason is None and part != "environment" and left < limit / 2:
            reason = over
        if reason is not None:
            done[part] = {"status": "skipped", "reason": reason}
        else:
            print(f"{part} ...", file=sys.stderr, flush=True)
            done[part] = run_part(part, folder, gpus, rehearse, min(limit, left))
            if left < limit and done[part].get("error", "").startswith(_LATE):
                done[part] |= {"status": "skipped", "reason": over}
                del done[part]["error"]
        if part == "environment":
            environment = done[part].get("found")
            found = gpus_of(environment)
            if not rehearse and done[part]["status"] == "ok" and not found:
                print(
                    "gpu_check: error: there is no GPU. `trl-credit doctor --needs gpu` says why; "
                    "`make gpu-check GPU_CHECK=--rehearse` needs none.",
                    file=sys.stderr,
                )
                raise SystemExit(2)
            gpus = visible(environment)
            _show_problems(folder / "environment.txt")
        print(f"{part}: {done[part]['status']}{_detail(done[part])}", file=sys.stderr, flush=True)
        results["complete"] = part == parts[-1]
        (folder / "results.json").write_text(json.dumps(results, indent=2) + "\n")
        try:
            table = markdown(results)
        except Exception:  # results of a part that ended in between; they are in results.json
            table = f"```text\n{traceback.format_exc()}```\n"
        (folder / "table.md").write_text(table)
    shutil.rmtree(folder / "model", ignore_errors=True)  # 3 GB
    return results


def _show_problems(report: Path) -> None:
    """Prints the problems in doctor's report, with commands as they are."""
    with contextlib.suppress(OSError, ValueError, KeyError):
        for problem in json.loads(report.read_text())["problems"]:
            what = f"{'Wrong' if problem['needed'] else 'Note'}: {problem['what']}"
            print(f"{what}\n  mend: {problem['mend']}", file=sys.stderr)


def _detail(result: dict) -> str:
    if result["status"] == "skipped":
        return f" ({result['reason']})"
    error = result.get("error", "").strip().splitlines()
    return f", {result['seconds']} s" + (f": {error[0]} ... {error[-1]}" if error else "")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument(
        "--rehearse", action="store_true", help="small sizes on the CPU, kernels in Triton's interpreter"
    )
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/gpu_check"))
    parser.add_argument("--minutes", type=float, default=10, help="for all parts; those left then are skipped")
    parser.add_argument("--parts", nargs="+", choices=BUDGETS, default=list(BUDGETS), help="`environment` always runs")
    arguments = parser.parse_args(argv)
    folder = arguments.output_dir.resolve()
    folder.mkdir(parents=True, exist_ok=True)
    chosen = {"environment", *arguments.parts}
    if chosen & {"update", "step", "colocate", "server"}:
        chosen.add("model")
    results = check(folder, arguments.rehearse, [part for part in BUDGETS if part in chosen], arguments.minutes)
    print((folder / "table.md").read_text())
    print(f"{arguments.output_dir}: results.json, table.md and what each part printed")
    if any(result["status"] == "failed" for result in results["parts"].values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
