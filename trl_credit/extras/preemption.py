"""On SIGTERM, finishes the current update, saves a checkpoint and ends the run."""

import os
import signal
import threading
from typing import ClassVar

import torch
from transformers import TrainerCallback


# Exit code after SIGTERM once the state is saved: 128 + 15, as a shell reports the signal
PREEMPTED = 143


class PreemptionCallback(TrainerCallback):
    """Makes SIGTERM end the run after the update in progress, with a checkpoint.

    Replaces transformers' own callback for three reasons: that one may save between an update's forward and its step
    and so lose the gradient; processes that get the signal at different times would not save together; and the run
    would end with exit code 0, as if it had finished.
    """

    # The instance that currently handles the signal
    _installed: ClassVar["PreemptionCallback | None"] = None

    def __init__(self, accelerator):
        self.accelerator = accelerator
        self.received = self.stopped = False
        self._previous = None

    def on_train_begin(self, args, state, control, **kwargs):
        if threading.current_thread() is not threading.main_thread():
            raise RuntimeError(
                "`enable_jit_checkpoint` handles SIGTERM, which only the main thread can: call `train` there, or set it to "
                "false."
            )
        self.received = self.stopped = False
        self._previous = signal.signal(signal.SIGTERM, self._receive)
        PreemptionCallback._installed = self

    def _receive(self, *_):
        self.received = True

    def on_step_end(self, args, state, control, **kwargs):
        received = torch.tensor(int(self.received), device=self.accelerator.device)
        if self.accelerator.reduce(received, reduction="sum") and state.global_step < state.max_steps:
            control.should_save = control.should_training_stop = self.stopped = True

    def on_epoch_end(self, args, state, control, **kwargs):
        if self.stopped and state.epoch % 1:  # stopped mid-epoch: skip what is due at an epoch's end
            control.should_log = control.should_evaluate = control.should_save = False

    def restore(self) -> None:
        """Puts the previous handler back."""
        PreemptionCallback._installed = None
        if self._previous is not None:
            signal.signal(signal.SIGTERM, self._previous)
            self._previous = None


# Forked children (reward functions fork them to run code) must end on SIGTERM. Python discards signals that a new child
# gets before it can handle any, so SIGTERM is blocked until the child has restored the previous handler.
_forking = threading.local()


def _before_fork() -> None:
    _forking.mask = None
    if PreemptionCallback._installed is not None:
        _forking.mask = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


def _after_fork() -> None:
    if _forking.mask is not None:
        signal.pthread_sigmask(signal.SIG_SETMASK, _forking.mask)


def _after_fork_in_child() -> None:
    if PreemptionCallback._installed is not None:
        PreemptionCallback._installed.restore()
    _after_fork()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_parent=_after_fork, after_in_child=_after_fork_in_child)
