"""Stands in for the commands of a cluster, so that the job files of recipes/cluster run on one machine."""

import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

from helpers import ROOT


# One program under the name of every command. It writes down its words; what runs for long ends when it is told to:
# trl-credit on SIGTERM with 143, as the real one, and trl-credit or vllm by a file with a status.
_STAND_IN = """#!{python} -S
import json, os, signal, subprocess, sys, time

records, name, words = os.environ["RECORDS"], os.path.basename(sys.argv[0]), sys.argv[1:]
shown = ("MACHINE_RANK", "SLURM_PROCID", "TORCH_ELASTIC_SHUTDOWN_TIMEOUT", "VLLM_HOST_IP", "VLLM_SERVER_DEV_MODE")
entry = dict(name=name, words=words, pid=os.getpid(), env=dict((key, os.environ.get(key)) for key in shown))
with open(os.path.join(records, "%s-%d.json" % (name, os.getpid())), "w") as file:
    json.dump(entry, file)


def option(name):
    return next(word.partition("=")[2] for word in words if word.startswith("--" + name + "="))


def step(id):
    return os.path.join(records, "step-" + id)


if name == "scontrol" and words[:2] == ["show", "hostnames"]:
    print("\\n".join(words[2].split(",")))
elif name == "getent":
    sys.exit(0 if words[1] != "nowhere" else 2)
elif name == "squeue":
    print("\\n".join("77.%s %s" % (number, step) for number, step in enumerate(("server", "trainer"))))
elif name == "scancel":
    id = dict([("77.0", "server"), ("77.1", "trainer")])[words[-1]]
    for pid in open(step(id)).read().split():
        os.kill(int(pid), getattr(signal, "SIG" + option("signal")))
elif name == "srun":
    rest = words[next(number for number, word in enumerate(words) if not word.startswith("--")):]
    nodes = option("nodelist").split(",")
    tasks = [
        subprocess.Popen(rest, env=dict(os.environ, SLURM_PROCID=str(rank)), start_new_session=True)
        for rank in range(len(nodes))
    ]
    with open(step(option("job-name")), "w") as file:
        file.write(" ".join(str(task.pid) for task in tasks))

    def abort(*_):  # srun ends its step when it gets the signal itself
        for task in tasks:
            os.killpg(task.pid, signal.SIGKILL)
        sys.exit(137)

    signal.signal(signal.SIGTERM, abort)
    codes = [task.wait() for task in tasks]
    sys.exit(max(code if code >= 0 else 128 - code for code in codes))
elif name in ("trl-credit", "vllm"):
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    open(os.path.join(records, "%s-%d.ready" % (name, os.getpid())), "w").close()
    told = os.path.join(records, name + ".status")
    while not os.path.exists(told):
        time.sleep(0.02)
    sys.exit(int(open(told).read()))
"""

COMMANDS = ("getent", "scancel", "scontrol", "squeue", "srun", "trl-credit", "vllm")


class Cluster:
    """The stand-ins, and what they wrote down.

    Args:
        folder: An empty folder.
        real: Commands that are not replaced.
    """

    def __init__(self, folder: Path, real: tuple[str, ...] = ()):
        self.records, self.shared, self.environment = folder / "records", folder / "shared", folder / "environment"
        self.records.mkdir()
        (self.environment / "bin").mkdir(parents=True)
        for name in set(COMMANDS) - set(real):
            path = self.environment / "bin" / name
            path.write_text(_STAND_IN.format(python=sys.executable))
            path.chmod(path.stat().st_mode | stat.S_IXUSR)
        self.env = {
            **{key: value for key, value in os.environ.items() if not key.startswith("SLURM")},
            "PATH": f"{self.environment / 'bin'}:{Path(sys.executable).parent}:{os.environ['PATH']}",
            "RECORDS": str(self.records),
            "SHARED": str(self.shared),
        }

    @contextlib.contextmanager
    def start(self, command: list[str], cwd: Path = ROOT, **env: str) -> Iterator[subprocess.Popen]:
        """Starts a command among the stand-ins, and ends what is left of it."""
        process = subprocess.Popen(
            command, cwd=cwd, env=self.env | env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            start_new_session=True,
        )  # fmt: skip
        try:
            yield process
        finally:
            started = [int(pid) for path in self.records.glob("step-*") for pid in path.read_text().split()]
            for group in (process.pid, *started):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            process.wait()
            process.stdout.close()

    def submit(self, nodes: str, *words: str, **env: str) -> contextlib.AbstractContextManager[subprocess.Popen]:
        """Runs slurm.sh as sbatch would, on nodes with a comma between them."""
        job = {"SLURM_JOB_ID": "77", "SLURM_JOB_NODELIST": nodes, "SLURM_CPUS_PER_TASK": "64", "SLURM_PROCID": "0"}
        script = ["bash", "recipes/cluster/slurm.sh", *words]
        return self.start(script, **job, ENVIRONMENT=str(self.environment), POLL="0.05", **env)

    def calls(self, name: str) -> list[dict]:
        """Words, environment and process of each call of a command, by rank."""
        entries = [json.loads(path.read_text()) for path in self.records.glob(f"{name}-*.json")]
        return sorted(entries, key=lambda entry: entry["env"]["SLURM_PROCID"] or "")

    def ready(self, process: subprocess.Popen, **counts: int) -> None:
        """Waits until so many of each command run: `trl_credit=4, vllm=1`."""
        for name, count in counts.items():
            while len(list(self.records.glob(f"{name.replace('_', '-')}-*.ready"))) < count:
                assert process.poll() is None, process.stdout.read()
                time.sleep(0.02)

    def end(self, name: str, status: int) -> None:
        """Makes all calls of a command end."""
        temporary = self.records / f"{name}.tmp"
        temporary.write_text(str(status))
        temporary.rename(self.records / f"{name}.status")

    def signal(self, number: signal.Signals, *steps: str) -> None:
        """Signals the first process of each task of the steps, as SLURM does."""
        for step in steps:
            for pid in (self.records / f"step-{step}").read_text().split():
                os.kill(int(pid), number)

    def alive(self, name: str) -> bool:
        """True if a call of a command still runs."""
        return any(_runs(entry["pid"]) for entry in self.calls(name))

    def ended(self, name: str) -> bool:
        """True if no call of a command runs any more. Signals take a moment."""
        deadline = time.monotonic() + 30
        while self.alive(name) and time.monotonic() < deadline:
            time.sleep(0.02)
        return not self.alive(name)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False
