"""A resumed run equals the uninterrupted run, bit for bit."""

import shutil

import pandas
import pytest
import torch
from helpers import ROOT
from safetensors.torch import load_file
from support.resumed import GCPO, assert_same_run, checkpoint, make, outcome

from trl_credit import train


DGPO = {"method": "dgpo", "temperature": 0.01}


def parity_reward(completion_ids, **kwargs) -> list[float]:
    """0 or 1, so that some groups agree; by the tokens, so that a policy can learn it."""
    return [float(sum(ids) % 5 < 2) for ids in completion_ids]


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


# In a generation batch, between two, and before the last update; at night after every update
@pytest.mark.parametrize("every_update", [False, pytest.param(True, marks=pytest.mark.nightly)])
@pytest.mark.parametrize("case", CASES)
def test_resumed_from_any_update(case, every_update, tiny_model, tmp_path):
    settings = CASES[case]
    whole = make(tiny_model, tmp_path / "whole", **settings)
    whole.train()
    expected = outcome(whole)
    last = whole.args.max_steps
    assert any(parameter.abs().sum() > 0 for parameter in expected[1].values())
    every = settings.get("save_steps", 1)
    stops = range(every, last, every) if every_update else [2, 4, last - every]
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


def test_beginning_anew_beside_earlier_checkpoints_is_told(tiny_model, tmp_path, caplog):
    make(tiny_model, tmp_path, max_steps=2).train()
    make(tiny_model, tmp_path, max_steps=3).train(resume_from_checkpoint=True)
    assert "of an earlier run" not in caplog.text
    make(tiny_model, tmp_path, max_steps=1).train()
    assert "checkpoint-3 is of an earlier run. This run starts anew" in caplog.text


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


def test_resume_asks_for_a_whole_one(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, max_steps=1)
    with pytest.raises(ValueError, match=r"there is no complete checkpoint in .* Use 'auto'"):
        trainer.train(resume_from_checkpoint=True)
    broken = checkpoint(tmp_path, 5, state=None)
    with pytest.raises(ValueError, match="checkpoint-5' is not a complete checkpoint"):
        trainer.train(resume_from_checkpoint=str(broken))
    for wrong in ("no/such/folder", "", 7):
        with pytest.raises(ValueError, match=rf"`resume_from_checkpoint`: {wrong!r} is not a folder"):
            trainer.train(resume_from_checkpoint=wrong)
    trainer.train(resume_from_checkpoint="auto")
    assert trainer.state.global_step == 1


def test_from_the_command_line(tmp_path, capsys):
    recipe = str(ROOT / "recipes" / "quickstart.yaml")
    arguments = ["--config", recipe, "--output_dir", str(tmp_path), "--save_strategy", "steps", "--save_steps", "1"]
    arguments += ["--per_device_train_batch_size", "8", "--logging_steps", "1", "--resume_from_checkpoint"]
    with pytest.raises(SystemExit) as error:
        train.main([*arguments, "true"])
    assert error.value.code == 2
    assert "error: `resume_from_checkpoint`: there is no complete checkpoint" in capsys.readouterr().err
    assert train.main([*arguments, "auto", "--max_steps", "2"]).state.global_step == 2
    for asked in ("auto", "true", str(tmp_path / "checkpoint-2")):
        trainer = train.main([*arguments, asked, "--max_steps", "3"])
        # The three updates, the summary, and the recipe's evaluation
        assert [entry["step"] for entry in trainer.state.log_history] == [1, 2, 3, 3, 3]
        assert trainer._initial_global_step == 2
        shutil.rmtree(tmp_path / "checkpoint-3")
