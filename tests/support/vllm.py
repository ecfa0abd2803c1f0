"""Real vLLM on a CPU: servers, and scripts that run it in processes of their own."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from helpers import ROOT, TESTS, free_port

from trl_credit._util.files import read_lines
from trl_credit.evaluation import EvalConfig


ENVIRONMENT = os.environ | {
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_CI_ENV": "1",  # without the compiler's searches
    "VLLM_HOST_IP": "127.0.0.1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_SERVER_DEV_MODE": "1",  # for weight updates
    "HF_HUB_OFFLINE": "1",
    "NO_PROXY": "127.0.0.1",
    "OMP_NUM_THREADS": "1",
    "PYTHONPATH": os.pathsep.join([str(TESTS), str(ROOT)]),
}
CONTEXT = 128


def greedy(folder: Path, **settings: Any) -> EvalConfig:
    """One greedy completion of each of 24 sums."""
    defaults = {"tasks": ["trl_credit:arithmetic"], "n": 1, "limit": 24, "preset": "greedy", "max_tokens": 40}
    return EvalConfig(**defaults | {"output_dir": str(folder), "report": False} | settings)


def texts_in(folder: Path) -> dict[tuple[int, int], str]:
    rows = read_lines(folder / "samples.jsonl")
    texts = {(row["problem"], row["index"]): row["text"] for row in rows}
    assert len(texts) == len(rows)
    return texts


@contextlib.contextmanager
def started(command: list[str], log: Path) -> Iterator[subprocess.Popen]:
    """A process with all that it starts, which end with the block."""
    environment = ENVIRONMENT | {"MASTER_PORT": str(free_port())}  # TRL takes 29500 if it is free now, and may lose it
    with log.open("w") as out:
        process = subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True)
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen) -> None:
    """Ends a process's whole session, in peace if it wants."""
    for number, seconds in ((signal.SIGTERM, 20), (signal.SIGKILL, 20)):
        for member in members(process.pid):
            with contextlib.suppress(ProcessLookupError):
                os.kill(member, number)
        deadline = time.monotonic() + seconds
        while members(process.pid) and time.monotonic() < deadline:
            process.poll()
            time.sleep(0.1)
    process.wait(20)


def run(command: list[str], log: Path, seconds: float = 600) -> None:
    """Runs a command, which must succeed."""
    with started(command, log) as process:
        try:
            status = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = f"no end in {seconds:g} s"
    assert status == 0, f"{status}\n{log.read_text()[-12_000:]}"


def run_worker(name: str, folder: Path, processes: int = 1, **arguments: Any) -> Any:
    """What a function of tests/with_vllm/worker.py returns in its main process."""
    folder.mkdir(exist_ok=True)
    job = folder / f"{name}.json"
    job.write_text(json.dumps({"function": name, "folder": str(folder), "arguments": arguments}))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    launcher = launcher if processes > 1 else []
    run([sys.executable, *launcher, str(TESTS / "with_vllm" / "worker.py"), str(job)], folder / f"{name}.log")
    return json.loads(job.with_suffix(".result").read_text())


@dataclass(frozen=True)
class Server:
    """A vLLM server that runs."""

    port: int
    log: Path
    process: subprocess.Popen

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/v1"

    def kill(self) -> None:
        """Ends it as a machine that loses its power, but for its connections, which close."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait(20)


@contextlib.contextmanager
def serve(folder: Path, model: str, *options: str) -> Iterator[Server]:
    """A vLLM server in float32. The CPU build's own `vllm` command lacks what it needs to start."""
    port, log = free_port(), folder / "server.log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "tiny", "--max-model-len", str(CONTEXT)]
    command += ["--enforce-eager", "--dtype", "float32", *options]
    with started(command, log) as process:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5).close()
                break
            except OSError:
                assert process.poll() is None, log.read_text()[-6000:]
                assert time.monotonic() < deadline, log.read_text()[-6000:]
                time.sleep(0.5)
        yield Server(port, log, process)


def members(session: int) -> list[int]:
    """Processes of a session that still live."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                # After the command's name, which may hold anything: state, parent, group, session
                state, _, _, owner = (entry / "stat").read_text().rpartition(")")[2].split()[:4]
                if int(owner) == session and state != "Z":
                    found.append(int(entry.name))
    return found
