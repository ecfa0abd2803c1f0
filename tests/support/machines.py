"""Two machines on one host: a launcher with processes of its own for each, in a network of two where root may make one."""

import contextlib
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from helpers import ROOT, TESTS, free_port


ADDRESSES = ("10.213.7.1", "10.213.7.2")
# A machine knows its own name and the other's; `ip netns exec` gives it its own interfaces only
ENTER = 'mount --bind "$1" /etc/hosts && hostname "$2" && shift 2 && exec "$@"'
# What `accelerate launch` is called for, in the interpreter that runs the tests
LAUNCH = (sys.executable, "-m", "accelerate.commands.launch")


@dataclass
class Machines:
    """Two machines. Without a network of their own they share the host's loopback address.

    Args:
        folder: Where each machine's output is kept.
        networks: Names of the machines' network namespaces; none if the two share the host's.
        port: Of the head.
    """

    folder: Path
    networks: tuple[str, ...] = ()
    port: int = 29500
    _started: list[psutil.Process] = field(default_factory=list)

    @property
    def head(self) -> str:
        """Address of the first machine, for both."""
        return ADDRESSES[0] if self.networks else "127.0.0.1"

    def launch(self, name: str, rank: int, *words: str, **variables: str) -> "Launched":
        """Starts `accelerate launch` with `words` on a machine; does not wait."""
        environment = {k: v for k, v in os.environ.items() if k != "ACCELERATE_USE_CPU"}
        environment |= {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **variables}
        environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT), environment.get("PYTHONPATH", "")])
        prefix = ()
        if self.networks:
            network = self.networks[rank]
            prefix = ("ip", "netns", "exec", network, "unshare", "--uts", "--mount", "sh", "-c", ENTER, "sh")
            prefix += (str(self.folder / "hosts"), network)
        output = self.folder / f"{name}-{rank}.txt"
        with output.open("w") as file:
            process = psutil.Popen(
                [*prefix, *LAUNCH, *words], env=environment, stdout=file, stderr=subprocess.STDOUT, cwd=self.folder
            )
        self._started.append(process)
        return Launched(process, output)

    def run(self, name: str, each: list[tuple[str, ...]], **variables: str) -> list["Launched"]:
        """Runs `accelerate launch` with the words of each machine on both, to the end."""
        runs = [self.launch(name, rank, *words, **variables) for rank, words in enumerate(each)]
        for run in runs:
            run.wait()
        return runs


@dataclass
class Launched:
    """A launcher that was started, and the file that has what it and its processes print."""

    process: psutil.Popen
    output: Path

    def wait(self) -> None:
        """Until it ends. One that never does fails the test."""
        self.process.wait(timeout=900)

    @property
    def code(self) -> int:
        return self.process.returncode

    @property
    def text(self) -> str:
        return self.output.read_text()


@contextlib.contextmanager
def machines(folder: Path):
    """The two machines, until the end of the block, where everything on them is killed."""
    made = Machines(folder)
    with contextlib.ExitStack() as stack:
        if _may_make_networks():
            made.networks = _networks(stack)
            lines = zip(ADDRESSES, made.networks, strict=True)
            (folder / "hosts").write_text(
                "127.0.0.1 localhost\n" + "".join(f"{address} {name}\n" for address, name in lines)
            )
        else:
            made.port = free_port()
        try:
            yield made
        finally:
            for process in made._started:
                kill(process)


def kill(process: psutil.Process) -> None:
    """Kills a launcher and the processes that it started, as a machine that stops would."""
    with contextlib.suppress(psutil.NoSuchProcess):
        for one in [process, *process.children(recursive=True)]:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.send_signal(signal.SIGKILL)
        process.wait()


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)


def _may_make_networks() -> bool:
    if os.name != "posix" or os.geteuid() != 0 or not all(map(shutil.which, ("ip", "unshare"))):
        return False
    name = f"may{os.getpid()}"
    try:
        _ip("netns", "add", name)
    except subprocess.CalledProcessError:
        return False
    _ip("netns", "del", name)
    return True


def _networks(stack: contextlib.ExitStack) -> tuple[str, ...]:
    """Names of two network namespaces that are connected to each other and to nothing else."""
    names = tuple(f"machine{rank}-{os.getpid()}" for rank in range(2))
    for name in names:
        _ip("netns", "add", name)
        stack.callback(_ip, "netns", "del", name)
    _ip("link", "add", "eth0", "netns", names[0], "type", "veth", "peer", "name", "eth0", "netns", names[1])
    for name, address in zip(names, ADDRESSES, strict=True):
        _ip("-n", name, "address", "add", f"{address}/24", "dev", "eth0")
        for device in ("lo", "eth0"):
            _ip("-n", name, "link", "set", device, "up")
    return names
