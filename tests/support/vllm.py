"""Real vLLM on a CPU: servers, and scripts that run it in processes of their own."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from helpers import ROOT, TESTS

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


def run_worker(name: str, folder: Path, processes: int = 1, **arguments: Any) -> Any:
    """What a function of tests/with_vllm/worker.py returns in its main process."""
    folder.mkdir(exist_ok=True)
    job = folder / f"{name}.json"
    job.write_text(json.dumps({"function": name, "folder": str(folder), "arguments": arguments}))
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--master_port", str(free_port())]
    command = [sys.executable, *(launcher if processes > 1 else []), str(TESTS / "with_vllm" / "worker.py"), str(job)]
    done = subprocess.run(command, env=ENVIRONMENT, capture_output=True, text=True, timeout=900, check=False)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-8000:]
    return json.loads(job.with_suffix(".result").read_text())


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return free.getsockname()[1]


@contextlib.contextmanager
def serve(folder: Path, model: str, *options: str) -> Iterator[int]:
    """The port of a vLLM server in float32. The CPU build's own `vllm` command lacks what it needs to start."""
    port, log = free_port(), folder / "log"
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", model, "--host", "127.0.0.1"]
    command += ["--port", str(port), "--served-model-name", "tiny", "--max-model-len", str(CONTEXT)]
    command += ["--enforce-eager", "--dtype", "float32", *options]
    with log.open("w") as out:
        process = subprocess.Popen(command, env=ENVIRONMENT, stdout=out, stderr=out, start_new_session=True)
    try:
        deadline = time.monotonic() + 400
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1).close()
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline, log.read_text()[-6000:]  # noqa: PT018
                time.sleep(0.5)
        yield port
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


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
