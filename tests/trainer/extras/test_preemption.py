"""SIGTERM during training: save, exit 143, resume exactly."""

import os
import signal
import time

import pytest
from helpers import letter_reward
from support.resumed import assert_same_run, make, outcome
from support.stopped import STOPPED, start

from trl_credit.extras.checkpoints import is_complete, last_complete_checkpoint
from trl_credit.extras.preemption import PREEMPTED


EVALUATED = {"eval_strategy": "epoch", "per_device_eval_batch_size": 8, "max_steps": 18, "save_steps": 12}


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["generation", "backward"])
def test_preempted(moment, tiny_model, tmp_path):
    whole = make(tiny_model, tmp_path / "whole", **STOPPED)
    whole.train()
    run = tmp_path / "run"
    step = {"generation": 5, "backward": 3}[moment]
    done = start("preempted", run, tiny_model, moment)
    assert done.returncode == PREEMPTED == 143, done.stderr[-3000:]
    assert f"saved after update {step}; exiting with code 143" in done.stderr
    assert "not reached" not in done.stdout
    assert is_complete(run / f"checkpoint-{step}")
    resumed = make(tiny_model, run, **STOPPED)
    resumed.train(resume_from_checkpoint="auto")
    assert_same_run(outcome(resumed), outcome(whole), moment)


def signalled(trainer, step):
    """Sends SIGTERM during an update."""
    get_grad_norm = trainer._get_grad_norm

    def signals(*args, **kwargs):
        if trainer.state.global_step == step:
            os.kill(os.getpid(), signal.SIGTERM)
        return get_grad_norm(*args, **kwargs)

    trainer._get_grad_norm = signals
    return trainer


def test_preempted_in_the_middle_of_an_epoch(tiny_model, tmp_path):
    """What is due at its end is not due: an evaluation would take its time, and another random state into the checkpoint."""
    settings = EVALUATED | {"save_strategy": "epoch", "enable_jit_checkpoint": True}
    whole = make(tiny_model, tmp_path / "whole", evaluate=True, **settings)
    whole.train()
    stopped = signalled(make(tiny_model, tmp_path / "run", evaluate=True, **settings), 4)
    with pytest.raises(SystemExit) as error:
        stopped.train()
    assert error.value.code == PREEMPTED
    assert [entry["step"] for entry in stopped.state.log_history] == [1, 2, 3, 4, 5, 5]  # and the run's summary
    assert not any("eval_loss" in entry for entry in stopped.state.log_history)
    resumed = make(tiny_model, tmp_path / "run", evaluate=True, **settings)
    resumed.train(resume_from_checkpoint="auto")
    assert_same_run(outcome(resumed), outcome(whole))


def test_preempted_where_the_best_is_saved(tiny_model, tmp_path):
    settings = {"save_strategy": "best", "metric_for_best_model": "loss", "eval_strategy": "steps", "eval_steps": 100}
    trainer = make(tiny_model, tmp_path, evaluate=True, enable_jit_checkpoint=True, **settings)
    with pytest.raises(SystemExit):
        signalled(trainer, 2).train()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-3"


def test_preempted_in_the_last_update_it_is_over(tiny_model, tmp_path):
    trainer = signalled(make(tiny_model, tmp_path, enable_jit_checkpoint=True, max_steps=3), 2)
    trainer.train()
    assert trainer.state.global_step == 3


def test_children_can_be_told_to_end(tiny_model, tmp_path):
    """As a reward function does that runs code and gives up on it, however young the child is."""
    ended = []

    def reward(completions, **kwargs):
        for _ in range(20):
            child = os.fork()
            if child == 0:
                time.sleep(0.5)
                os._exit(0)
            os.kill(child, signal.SIGTERM)
            ended.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        ended.append(signal.pthread_sigmask(signal.SIG_BLOCK, []))
        return letter_reward(completions)

    mask = signal.pthread_sigmask(signal.SIG_BLOCK, [])
    make(tiny_model, tmp_path, reward=reward, enable_jit_checkpoint=True, max_steps=1).train()
    assert ended == [-signal.SIGTERM] * 20 + [mask]


def test_the_handler_is_there_while_training_only(tiny_model, tmp_path):
    before = signal.getsignal(signal.SIGTERM)
    during = []
    trainer = make(
        tiny_model,
        tmp_path,
        reward=lambda completions, **_: during.append(signal.getsignal(signal.SIGTERM)) or letter_reward(completions),
        enable_jit_checkpoint=True,
        max_steps=1,
    )
    assert signal.getsignal(signal.SIGTERM) is before
    trainer.train()
    assert signal.getsignal(signal.SIGTERM) is before
    assert all(handler is not before for handler in during)
    assert trainer.args.enable_jit_checkpoint
