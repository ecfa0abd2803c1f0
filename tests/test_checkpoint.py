"""A run that was stopped and resumed is the run that was not."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas
import pytest
import torch
from helpers import config, letter_reward, prompts
from peft import LoraConfig
from safetensors.torch import load_file, save_file
from test_uniform import TIMES

from trl_credit import CreditGRPOTrainer, train
from trl_credit.extras.checkpoints import is_complete, last_complete_checkpoint, load_tree, save_tree
from trl_credit.extras.preemption import PREEMPTED


GCPO = {"method": "gcpo", "negative_prompt": "!{prompt}"}
DGPO = {"method": "dgpo", "temperature": 0.01}


def parity_reward(completion_ids, **kwargs) -> list[float]:
    """0 or 1, so that some groups agree; by the tokens, so that a policy can learn it."""
    return [float(sum(ids) % 5 < 2) for ids in completion_ids]


def make(model, path, reward=letter_reward, peft=False, iterable=False, size=6, evaluate=False, **overrides):
    data = prompts(size)
    settings = {
        "per_device_train_batch_size": 4,
        "steps_per_generation": 2,
        "num_iterations": 2,
        "gradient_accumulation_steps": 1,
        "save_strategy": "steps",
        "save_steps": 1,
        "max_steps": 14,
        "learning_rate": 3e-3,
        "lr_scheduler_type": "linear",
    }
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config(path, **settings | overrides),
        train_dataset=data.to_iterable_dataset() if iterable else data,
        peft_config=LoraConfig(r=4, target_modules=["q_proj", "v_proj"]) if peft else None,
        eval_dataset=prompts(2, seed=1) if evaluate else None,
    )


def outcome(trainer):
    logs = [
        {key: value for key, value in entry.items() if not any(time in key for time in TIMES)}
        for entry in trainer.state.log_history
        if "train_loss" not in entry
    ]
    return logs, {name: p.detach().clone() for name, p in trainer.model.named_parameters()}


def assert_same_run(resumed, whole, context=""):
    for ours, theirs in zip(resumed[0], whole[0], strict=True):
        assert ours == theirs, (context, ours["step"], {k for k in theirs if ours.get(k) != theirs[k]})
    for name, parameter in whole[1].items():
        assert torch.equal(resumed[1][name], parameter), (context, name)


# Four updates to a generation batch and twelve to a pass
CASES = {
    "uniform": {},
    "gcpo": {"credit": GCPO},
    "dgpo": {"credit": DGPO},
    "lora": {"credit": DGPO, "peft": True, "beta": 0.05},
    "accumulation": {"gradient_accumulation_steps": 2, "steps_per_generation": 4, "save_steps": 2, "credit": GCPO},
    "misaligned": {"gradient_accumulation_steps": 2, "steps_per_generation": 3, "num_iterations": 1, "size": 12},
    "iterable": {"iterable": True, "max_steps": 27},
    "synced_reference": {
        "credit": DGPO, "sync_ref_model": True, "ref_model_sync_steps": 3, "ref_model_mixup_alpha": 0.6,
    },
    "adaptive_entropy": {"use_adaptive_entropy": True, "entropy_target": 1.0, "entropy_coef_delta": 0.01},
    "dynamic_sampling": {"dynamic_sampling": True, "credit": GCPO, "reward": parity_reward, "size": 9},
    "dynamic_iterable": {
        "dynamic_sampling": True, "iterable": True, "reward": parity_reward, "size": 9, "max_steps": 27,
    },
    "sparse_logs": {"logging_steps": 3, "credit": GCPO},
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_resumed_from_any_update(case, tiny_model, tmp_path):
    settings = CASES[case]
    whole = make(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    expected = outcome(whole)
    last = whole.args.max_steps
    assert any(parameter.abs().sum() > 0 for parameter in expected[1].values())
    every = settings.get("save_steps", 1)
    stops = (
        range(every, last, every)
        if case in ("uniform", "dynamic_sampling")
        else [2, 4, last // 2 // 2 * 2 + every, last - every]
    )
    for stop in stops:
        resumed = make(tiny_model, tmp_path / "resumed", **settings)
        torch.manual_seed(stop)  # not the state of the run that was stopped
        resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
        assert_same_run(outcome(resumed), expected, f"{case}, stopped after {stop}")


EVALUATED = {"eval_strategy": "epoch", "per_device_eval_batch_size": 8, "max_steps": 18, "save_steps": 12}


@pytest.mark.parametrize("stop", [12, 15])
def test_resumed_around_an_evaluation(stop, tiny_model, tmp_path):
    """At the end of the first pass, where the checkpoint of its last step comes before the evaluation, and later."""
    settings = EVALUATED | ({"save_steps": 15} if stop == 15 else {})
    whole = make(tiny_model, tmp_path / "whole", evaluate=True, **settings)
    whole.train()
    assert sum("eval_loss" in entry for entry in whole.state.log_history) == 2  # and when it ends
    resumed = make(tiny_model, tmp_path / "resumed", evaluate=True, **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / f"checkpoint-{stop}"))
    assert_same_run(outcome(resumed), outcome(whole), stop)


def test_resumed_with_the_completions_table(tiny_model, tmp_path):
    settings = {"log_completions": True, "max_steps": 4, "credit": GCPO}
    make(tiny_model, tmp_path / "whole", **settings).train()
    resumed = make(tiny_model, tmp_path / "resumed", **settings)
    resumed.train(resume_from_checkpoint=str(tmp_path / "whole" / "checkpoint-2"))
    for step in (3, 4):
        ours, theirs = (
            pandas.read_parquet(tmp_path / run / "completions" / f"completions_{step:05d}.parquet")
            for run in ("resumed", "whole")
        )
        assert len(theirs) == 8
        pandas.testing.assert_frame_equal(ours, theirs)


def test_a_finished_run_is_finished(tiny_model, tmp_path):
    make(tiny_model, tmp_path, max_steps=3).train()
    resumed = make(tiny_model, tmp_path, max_steps=3)
    before = load_file(tmp_path / "checkpoint-3" / "model.safetensors")
    resumed.train(resume_from_checkpoint="auto")
    assert resumed.state.global_step == 3
    assert all(torch.equal(p, before[name]) for name, p in resumed.model.named_parameters() if name in before)


def test_more_processes_than_before(tiny_model, tmp_path, monkeypatch):
    """All take the first one's state: streams that differ would mix prompts in a group."""
    settings = {"dynamic_sampling": True, "reward": parity_reward, "size": 9}
    first = make(tiny_model, tmp_path, max_steps=3, **settings)
    first.train()
    resumed = make(tiny_model, tmp_path, max_steps=3, **settings)
    monkeypatch.setattr(type(resumed.accelerator), "process_index", 1)
    resumed._read_checkpoint_state(tmp_path / "checkpoint-3")
    assert resumed._checkpoint_state["prompts"] == first._prompt_stream.state_dict()


def test_what_changed_is_not_continued(tiny_model, tmp_path, caplog):
    make(tiny_model, tmp_path, max_steps=2).train()
    resumed = make(tiny_model, tmp_path, max_steps=5, per_device_train_batch_size=8, credit=GCPO)
    resumed.train(resume_from_checkpoint=True)
    assert "`per_device_train_batch_size`, `credit` changed since the checkpoint was saved" in caplog.text
    assert len(resumed.state.log_history) == 2 + 3 + 1


def test_a_checkpoint_of_trl(tiny_model, tmp_path, caplog):
    make(tiny_model, tmp_path, max_steps=2).train()
    for name in ("credit_state_0.safetensors", "credit_manifest.json"):
        (tmp_path / "checkpoint-2" / name).unlink()
    make(tiny_model, tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert "it was not saved by this trainer" in caplog.text


def test_beginning_over_with_another_learning_rate_is_no_business_of_ours(tiny_model, tmp_path, caplog):
    """What is not about the generation batch may change."""
    make(tiny_model, tmp_path, max_steps=2).train()
    make(tiny_model, tmp_path, max_steps=3, learning_rate=1e-4).train(resume_from_checkpoint=True)
    assert "changed since the checkpoint" not in caplog.text


# Trees


def test_trees(tmp_path):
    tree = {
        "a": [torch.arange(6).view(2, 3).T, None, True, 1.5, "text", float("nan")],
        "b": {"c": torch.tensor(3), "d": torch.zeros(2, 0, dtype=torch.bool), "e": []},
        "tensor": {"dict": torch.tensor([0.1], dtype=torch.bfloat16)},
        "": 0,
    }
    shared = torch.randn(4, 4)
    tree["views"] = [shared[:2], shared[1:]]
    save_tree(tmp_path / "tree.safetensors", tree)
    loaded = load_tree(tmp_path / "tree.safetensors")

    def check(a, b):
        assert type(a) is type(b)
        if isinstance(a, torch.Tensor):
            assert a.dtype == b.dtype
            assert torch.equal(a, b)
        elif isinstance(a, dict):
            assert a.keys() == b.keys()
            for key in a:
                check(a[key], b[key])
        elif isinstance(a, list):
            assert len(a) == len(b)
            for x, y in zip(a, b, strict=True):
                check(x, y)
        else:
            assert a == b or (a != a and b != b)

    check(loaded, tree)
    assert [path.name for path in tmp_path.iterdir()] == ["tree.safetensors"]


def test_no_pickle(tmp_path):
    with pytest.raises(TypeError, match="/a/1 is a Random, which has no safe format"):
        save_tree(tmp_path / "tree.safetensors", {"a": [0, random.Random()]})
    assert not list(tmp_path.iterdir())


# Whole or not there


def checkpoint(path, step, *, state="{}"):
    folder = Path(path) / f"checkpoint-{step}"
    folder.mkdir(parents=True)
    save_file({}, folder / "model.safetensors")
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save({}, folder / name)
    if state is not None:
        (folder / "trainer_state.json").write_text(state)
    return folder


def test_the_last_whole_checkpoint(tmp_path, caplog):
    assert last_complete_checkpoint(tmp_path) is None
    checkpoint(tmp_path, 9)
    checkpoint(tmp_path, 10)
    (tmp_path / "checkpoint-best").mkdir()
    (tmp_path / "checkpoint-99").touch()
    checkpoint(tmp_path, 11, state=None)
    checkpoint(tmp_path, 12, state='{"epoch": 0.')
    (checkpoint(tmp_path, 13) / "checkpoint-is-incomplete.txt").touch()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-10"
    assert all(f"checkpoint-{step} was not written to its end" in caplog.text for step in (11, 12, 13))


def test_resume_asks_for_a_whole_one(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"there is no whole checkpoint in .* Use 'auto'"):
        trainer.train(resume_from_checkpoint=True)
    broken = checkpoint(tmp_path, 5, state=None)
    with pytest.raises(ValueError, match="checkpoint-5' is not a checkpoint that was written to its end"):
        trainer.train(resume_from_checkpoint=str(broken))
    for wrong in ("no/such/folder", "", 7):
        with pytest.raises(ValueError, match=rf"`resume_from_checkpoint`: {wrong!r} is not a folder"):
            trainer.train(resume_from_checkpoint=wrong)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 1


def test_from_the_command_line(tmp_path, capsys):
    recipe = str(Path(__file__).parents[1] / "recipes" / "quickstart.yaml")
    arguments = ["--config", recipe, "--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "1"]
    arguments += ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--resume_from_checkpoint"]
    with pytest.raises(SystemExit) as error:
        train.main([*arguments, "true"])
    assert error.value.code == 2
    assert "error: `resume_from_checkpoint`: there is no whole checkpoint" in capsys.readouterr().err
    assert train.main([*arguments, "auto", "--max_steps", "2"]).state.global_step == 2
    for asked in ("auto", "true", str(tmp_path / "checkpoint-2")):
        trainer = train.main([*arguments, asked, "--max_steps", "3"])
        # The three updates, the summary, and the recipe's evaluation
        assert [entry["step"] for entry in trainer.state.log_history] == [1, 2, 3, 3, 3]
        assert trainer._initial_global_step == 2
        shutil.rmtree(tmp_path / "checkpoint-3")


def start(script, path, *arguments):
    """Runs this file as a script in a process of its own; returns it."""
    here = Path(__file__).parent
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    environment["PYTHONPATH"] = os.pathsep.join([str(here), str(here.parent), environment.get("PYTHONPATH", "")])
    return subprocess.run(
        [sys.executable, str(here / "test_checkpoint.py"), script, str(path), *arguments],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


STOPPED = {"max_steps": 6, "save_steps": 2, "credit": GCPO}

# Where a process is killed while it writes the checkpoint of its fourth update
PLACES = ("model", "optimizer", "rng", "state", "rotation")


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


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_killed_while_writing(place, tiny_model, tmp_path):
    whole = make(tiny_model, tmp_path / "whole", **STOPPED)
    whole.train()
    run = tmp_path / "run"
    shutil.copytree(tmp_path / "whole" / "checkpoint-6", run / "checkpoint-4")  # of an earlier run, and whole
    os.utime(run / "checkpoint-4", (0, 0))
    done = start("killed", run, tiny_model, place)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    found = last_complete_checkpoint(run)
    assert found.name == ("checkpoint-4" if place == "rotation" else "checkpoint-2")
    resumed = make(tiny_model, run, **STOPPED)
    resumed.train(resume_from_checkpoint="auto")
    assert_same_run(outcome(resumed), outcome(whole), place)


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


if __name__ == "__main__":
    torch.set_num_threads(1)
    {"killed": killed, "preempted": preempted}[sys.argv[1]](*sys.argv[2:])
