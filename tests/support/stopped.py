"""Trains in a process that tests kill or tell to stop; `start` runs this file as a script."""

import os
import signal
import subprocess
import sys

import torch
from helpers import ROOT, TESTS
from support.resumed import GCPO, make


STOPPED = {"max_steps": 6, "save_steps": 2, "credit": GCPO}


def start(script, path, *arguments):
    """Runs this file as a module, to its end. As a script it would take vllm.py, which is beside it, for vLLM."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(TESTS), str(ROOT), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, "-m", "support.stopped", script, str(path), *arguments],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def killed(path, model, place):
    """Trains, and is killed in the middle of a checkpoint that overwrites one of an earlier run."""
    trainer = make(model, path, save_total_limit=2, **STOPPED)

    def kill(function, before=True):
        def dies(*args, **kwargs):
            if trainer.state.global_step == 4 and not before:
                function(*args, **kwargs)
            if trainer.state.global_step == 4:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return dies

    if place == "model":
        trainer._save = kill(trainer._save)
    elif place == "optimizer":
        trainer._save_scaler = kill(trainer._save_scaler)
    elif place == "rng":
        trainer._save_rng_state = kill(trainer._save_rng_state, before=False)
    elif place == "state":
        trainer._save_rng_state = kill(trainer._save_rng_state)
    else:
        import transformers.trainer

        transformers.trainer.rotate_checkpoints = kill(transformers.trainer.rotate_checkpoints)
    trainer.train()


def preempted(path, model, moment):
    """Trains, and is told to end during its fifth update, which generates, or its third, which does not."""
    trainer = make(model, path, enable_jit_checkpoint=True, **STOPPED)
    step = {"generation": 4, "backward": 2}[moment]

    def then(name):
        function = getattr(trainer, name)

        def signals(*args, **kwargs):
            if trainer.state.global_step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return function(*args, **kwargs)

        setattr(trainer, name, signals)

    then({"generation": "_generate", "backward": "_get_grad_norm"}[moment])
    trainer.train()
    print("not reached")


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "preempted": preempted}[sys.argv[1]](*sys.argv[2:])
