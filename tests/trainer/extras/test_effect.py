"""A run that trains nothing fails as early as possible."""

import logging

import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, prompts
from peft import LoraConfig, PeftModel
from support.effect import load, never, none
from support.rewards import constant
from trl import GRPOTrainer

from trl_credit import CreditGRPOTrainer
from trl_credit.extras.checkpoints import last_complete_checkpoint
from trl_credit.extras.effect import NothingTrainedError


NAN, INF = float("nan"), float("inf")


def make(
    model,
    path,
    reward=letter_reward,
    size=16,
    iterable=False,
    rollout=fixed_rollout,
    peft=None,
    answers=None,
    **overrides,
):
    data = prompts(size) if answers is None else prompts(size).remove_columns("answer").add_column("answer", answers)
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config(path, **overrides),
        train_dataset=data.to_iterable_dataset() if iterable else data,
        rollout_func=rollout,
        peft_config=peft,
    )


# Too little data


def test_fewer_rows_than_a_generation_batch(tiny_model, tmp_path):
    """Before anything is generated; one row more is enough."""
    settings = {"steps_per_generation": 2, "gradient_accumulation_steps": 2}  # 16 completions of 4 prompts
    trainer = make(tiny_model, tmp_path, size=3, rollout=never, **settings)
    with pytest.raises(ValueError, match=r"has 3 rows, but a generation batch needs 4 .* no update would be made"):
        trainer.train()
    trainer = make(tiny_model, tmp_path, size=4, max_steps=1, **settings)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize("settings", [{}, {"gradient_accumulation_steps": 4, "steps_per_generation": 2, "size": 5}])
def test_a_stream_that_ends_before_the_first_update(settings, tiny_model, tmp_path):
    """With more micro-batches to an update than a pass gives, it was begun again without end."""
    trainer = make(tiny_model, tmp_path, **{"size": 1, "iterable": True} | settings)
    with pytest.raises(NothingTrainedError, match="the stream of training data ended before the first update"):
        trainer.train()


def test_a_stream_that_is_long_enough(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, size=2, iterable=True, max_steps=5)
    trainer.train()
    assert trainer.state.global_step == 5


def test_no_epochs(tiny_model, tmp_path):
    with pytest.raises(NothingTrainedError, match="`num_train_epochs` is 0"):
        make(tiny_model, tmp_path, rollout=never, max_steps=-1, num_train_epochs=0).train()


def test_a_finished_run_says_so(tiny_model, tmp_path, caplog):
    settings = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2}
    make(tiny_model, tmp_path, **settings).train()
    trainer = make(tiny_model, tmp_path, rollout=never, **settings)
    trainer.train(resume_from_checkpoint="auto")
    assert "The run had already finished at update 2 of 2: no further update was made." in caplog.text


@pytest.mark.parametrize("settings", [
    {"credit": "dgpo"}, {"beta": 0.1}, {"gradient_checkpointing": True}, {"credit": "gcpo"}, {},
])  # fmt: skip
def test_an_adapter_that_was_loaded_frozen(settings, tiny_model, other_adapter, tmp_path):
    """The way to DGPO's reference and back makes it trainable, when the optimizer has been made without it."""
    model = PeftModel.from_pretrained(load(tiny_model), other_adapter)
    trainer = make(model, tmp_path, rollout=never, **settings)
    with pytest.raises(NothingTrainedError, match=r"adapter 'default' is trainable.*is_trainable=True"):
        trainer.train()


@pytest.mark.parametrize("settings", [{"credit": "dgpo"}, {"beta": 0.1}])
def test_an_adapter_that_goes_on(settings, tiny_model, other_adapter, tmp_path):
    model = PeftModel.from_pretrained(load(tiny_model), other_adapter, is_trainable=True)
    before = {name: p.clone() for name, p in model.named_parameters() if ".default." in name}
    make(model, tmp_path, max_steps=1, **settings).train()
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


@pytest.mark.parametrize("settings", [{}, {"gradient_checkpointing": True}, {"credit": "dgpo"}])
def test_a_frozen_model(settings, tiny_model, tmp_path):
    trainer = make(load(tiny_model).requires_grad_(False), tmp_path, rollout=never, **settings)
    with pytest.raises(NothingTrainedError, match="No parameter of the model is trainable"):
        trainer.train()


def test_a_frozen_model_can_be_evaluated(tiny_model, tmp_path):
    trainer = CreditGRPOTrainer(
        model=load(tiny_model).requires_grad_(False), reward_funcs=letter_reward, rollout_func=fixed_rollout,
        args=config(tmp_path, per_device_eval_batch_size=8), train_dataset=prompts(1), eval_dataset=prompts(2),
    )  # fmt: skip
    assert trainer.evaluate()["eval_reward"] is not None


@pytest.mark.parametrize("hidden", [True, False])
def test_parameters_that_take_no_part(hidden, tiny_model, tmp_path):
    """Hidden by what lets checkpointed layers have a gradient."""
    model = load(tiny_model).requires_grad_(False)
    model.spare = torch.nn.Linear(2, 2)
    if hidden:
        model.enable_input_require_grads()
    message = (
        r"any of the optimizer's 2 parameters .*'spare.weight'.*take no part" if hidden else "The loss has no gradient"
    )
    with pytest.raises(NothingTrainedError, match=message):
        make(model, tmp_path).train()


def test_an_optimizer_of_other_parameters(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path)
    trainer.optimizer = torch.optim.SGD(load(tiny_model).parameters(), lr=0.1)
    with pytest.raises(NothingTrainedError, match="no gradient for any of the"):
        trainer.train()


# No gradient, or nothing moves


def truncated(prompts_, trainer):
    rollout = fixed_rollout(prompts_, trainer)
    return rollout | {"completion_ids": [[5] * 12 for _ in prompts_]}


def masked(prompts_, trainer):
    rollout = fixed_rollout(prompts_, trainer)
    return rollout | {"env_mask": [[0] * len(row) for row in rollout["completion_ids"]]}


NO_GRADIENT = {
    "constant": ({"reward": constant}, "none of the 24 completions has an advantage"),
    "constant with the savings": (
        {"reward": constant, "credit": "dgpo"},
        "none of the 24 completions has an advantage",
    ),
    "none": ({"reward": none}, "none of the 24 completions has an advantage.*`none` always gave `None`. Check"),
    "no answers": (
        {"reward": constant, "answers": [None] * 16},
        "none of the 24.*`constant` was always 1. The column 'answer' is empty in 100 % of the rows",
    ),
    "no weight": ({"reward_weights": [0.0]}, "none of the 24 completions has an advantage"),
    "truncated": ({"rollout": truncated, "mask_truncated_completions": True}, "no token of the 24 completions is in"),
    "tools": ({"rollout": masked}, "no token of the 24 completions is in the loss"),
    "one update": ({"reward": constant, "max_steps": 1}, "none of the 8 completions"),
}


@pytest.mark.parametrize("case", NO_GRADIENT)
def test_no_gradient_in_the_whole_run(case, tiny_model, tmp_path):
    settings, message = NO_GRADIENT[case]
    with pytest.raises(NothingTrainedError, match=f"Nothing was trained: {message}"):
        make(tiny_model, tmp_path, **settings).train()


def test_one_gradient_is_enough(tiny_model, tmp_path):
    """Also if it was before a checkpoint."""

    def once(completions, trainer_state, **kwargs):
        return letter_reward(completions) if trainer_state.global_step == 1 else constant(completions)

    settings = {"reward": once, "save_strategy": "steps", "save_steps": 1}
    trainer = make(tiny_model, tmp_path / "one", max_steps=4, **settings)
    trainer.train()
    assert trainer._updates_with_gradient == 1
    (tmp_path / "one" / "checkpoint-4" / "trainer_state.json").unlink()
    make(tiny_model, tmp_path / "one", max_steps=4, **settings).train(resume_from_checkpoint="auto")
    never_one = make(tiny_model, tmp_path / "none", max_steps=4, reward=constant, save_strategy="steps", save_steps=1)
    with pytest.raises(NothingTrainedError):
        never_one.train()
    (tmp_path / "none" / "checkpoint-4" / "trainer_state.json").unlink()
    with pytest.raises(NothingTrainedError):
        make(tiny_model, tmp_path / "none", max_steps=4, reward=constant).train(resume_from_checkpoint="auto")


def test_a_learning_rate_of_zero_is_a_warning(tiny_model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make(tiny_model, tmp_path, learning_rate=0.0).train()
    assert "`learning_rate` is 0" in caplog.text


def test_steps_too_small_for_the_dtype(tiny_model, tmp_path):
    model = load(tiny_model)
    with torch.no_grad():
        for parameter in model.parameters():  # what is zero moves by any step
            parameter[parameter == 0.0] = 1.0
    with pytest.raises(NothingTrainedError, match=r"all 3 updates had gradients but changed no parameter"):
        make(model, tmp_path, learning_rate=1e-30).train()


def test_the_first_update_of_a_warmup_is_a_warning(tiny_model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make(tiny_model, tmp_path, max_steps=1, warmup_steps=10, lr_scheduler_type="constant_with_warmup").train()
    assert "the only update had gradients but changed no parameter" in caplog.text


def test_every_update_skipped(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path)
    loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: loss(model, inputs) * NAN
    with pytest.raises(NothingTrainedError, match="all 3 updates had a non-finite loss or gradient"):
        trainer.train()


# Parameters that are not finite


LORA = {"peft": LoraConfig(r=4, target_modules=["q_proj"])}


@pytest.mark.parametrize("settings", [{"learning_rate": 1e38}, {"weight_decay": 1e300}, {"learning_rate": 1e38} | LORA])
def test_parameters_that_are_not_finite_end_the_run(settings, tiny_model, tmp_path):
    """Before they are saved, and before they generate."""
    trainer = make(tiny_model, tmp_path, save_strategy="steps", save_steps=1, **settings)
    with pytest.raises(FloatingPointError, match=r"The parameter '.*' and \d+ more are not finite after update 1, "):
        trainer.train()
    assert not list(tmp_path.glob("checkpoint-*"))


def test_the_last_checkpoint_stays(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path, save_strategy="steps", save_steps=1, max_steps=4)
    trainer.create_optimizer()

    def break_one(*_):
        if trainer.state.global_step == 2:
            trainer.model.get_parameter("model.layers.1.mlp.up_proj.weight").data[3, 5] = -INF

    trainer.optimizer.register_step_post_hook(break_one)
    with pytest.raises(FloatingPointError, match=r"'model.layers.1.mlp.up_proj.weight' is not finite after update 3"):
        trainer.train()
    assert last_complete_checkpoint(tmp_path).name == "checkpoint-2"


def test_a_model_that_is_not_finite_when_it_is_loaded(tiny_model, tmp_path):
    model = load(tiny_model)
    model.model.norm.weight.data[7] = NAN
    with pytest.raises(FloatingPointError, match=r"'model.norm.weight' is not finite before the first update"):
        make(model, tmp_path, rollout=never).train()


def test_uniform_is_still_trl(tiny_model, tmp_path):
    """None of it touches what is computed."""
    states = []
    for kind in (GRPOTrainer, CreditGRPOTrainer):
        trainer = kind(
            model=tiny_model, reward_funcs=letter_reward, args=config(tmp_path, max_steps=2), train_dataset=prompts()
        )
        trainer.train()
        states.append([p.detach() for p in trainer.model.parameters()] + [torch.get_rng_state()])
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
