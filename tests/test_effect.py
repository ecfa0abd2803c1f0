"""A run that trains nothing is an error, as early as it can be known."""

import json
import logging

import pytest
import torch
from helpers import config, fixed_rollout, letter_reward, prompts
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoModelForCausalLM
from trl import GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer, train
from trl_credit.extras.checkpoints import last_complete_checkpoint
from trl_credit.extras.effect import NothingTrainedError, check_rows, check_trainable
from trl_credit.extras.nonfinite import nonfinite_names


NAN, INF = float("nan"), float("inf")


def make(model, path, reward=letter_reward, size=16, iterable=False, rollout=fixed_rollout, peft=None, **overrides):
    data = prompts(size)
    return CreditGRPOTrainer(
        model=model,
        reward_funcs=reward,
        args=config(path, **overrides),
        train_dataset=data.to_iterable_dataset() if iterable else data,
        rollout_func=rollout,
        peft_config=peft,
    )


def never(*args, **kwargs):
    raise AssertionError("a completion was generated")


def constant(completions, **kwargs):
    return [1.0] * len(completions)


def none(completions, **kwargs):
    return [None] * len(completions)


def load(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)


# Too little data


def test_fewer_rows_than_a_generation_batch(tiny_model, tmp_path):
    """Before anything is generated; one row more is enough."""
    settings = {"steps_per_generation": 2, "gradient_accumulation_steps": 2}  # 16 completions of 4 prompts
    trainer = make(tiny_model, tmp_path, size=3, rollout=never, **settings)
    with pytest.raises(ValueError, match=r"has 3 rows, and one generation batch takes 4 .* no update would be made"):
        trainer.train()
    trainer = make(tiny_model, tmp_path, size=4, max_steps=1, **settings)
    trainer.train()
    assert trainer.state.global_step == 1


@pytest.mark.parametrize(("rows", "processes"), [(0, 1), (7, 1), (8, 1), (8, 2), (15, 2), (16, 2)])
def test_rows_of_all_processes(rows, processes, tmp_path, monkeypatch):
    monkeypatch.setattr(CreditGRPOConfig, "world_size", processes)
    args = config(tmp_path, steps_per_generation=4)
    needed = 8 * processes
    assert args.generation_batch_size == 4 * needed
    if rows >= needed:
        check_rows(range(rows), args)
        return
    with pytest.raises(ValueError, match=rf"has {rows} rows, and one generation batch takes {needed} "):
        check_rows(range(rows), args)


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
    assert "The run was finished at update 2 of 2: no further update was made." in caplog.text


# Nothing trainable


@pytest.fixture(scope="module")
def adapter(tiny_model, tmp_path_factory):
    path = tmp_path_factory.mktemp("adapters")
    lora = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    get_peft_model(load(tiny_model), lora).save_pretrained(path)
    return path


@pytest.mark.parametrize("settings", [
    {"credit": "dgpo"}, {"beta": 0.1}, {"gradient_checkpointing": True}, {"credit": "gcpo"}, {},
])  # fmt: skip
def test_an_adapter_that_was_loaded_frozen(settings, tiny_model, adapter, tmp_path):
    """The way to DGPO's reference and back makes it trainable, when the optimizer has been made without it."""
    model = PeftModel.from_pretrained(load(tiny_model), adapter)
    trainer = make(model, tmp_path, rollout=never, **settings)
    with pytest.raises(NothingTrainedError, match=r"adapter 'default' is trainable.*is_trainable=True"):
        trainer.train()


@pytest.mark.parametrize("settings", [{"credit": "dgpo"}, {"beta": 0.1}])
def test_an_adapter_that_goes_on(settings, tiny_model, adapter, tmp_path):
    model = PeftModel.from_pretrained(load(tiny_model), adapter, is_trainable=True)
    before = {name: p.clone() for name, p in model.named_parameters() if ".default." in name}
    make(model, tmp_path, max_steps=1, **settings).train()
    after = dict(model.named_parameters())
    assert any(not torch.equal(value, after[name]) for name, value in before.items())


def test_another_adapter_than_the_active_one(tiny_model, adapter, tmp_path):
    model = PeftModel.from_pretrained(load(tiny_model), adapter)
    model.load_adapter(adapter, "other", is_trainable=True)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".other." in name)
    with pytest.raises(NothingTrainedError, match=r"adapter 'default' is trainable; other is not active"):
        check_trainable(model)
    model.set_adapter("other")
    check_trainable(model)


def test_what_is_trainable_is_let_be(tiny_model):
    saved = LoraConfig(r=4, target_modules=["q_proj"], modules_to_save=["lm_head"])
    model = get_peft_model(load(tiny_model), saved)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("modules_to_save" in name)
    check_trainable(model)
    part = load(tiny_model).requires_grad_(False)
    part.model.layers[1].requires_grad_(True)  # a frozen vision tower is the same
    check_trainable(part)
    for parameter in part.parameters():  # as ZeRO-3 leaves them
        parameter.data = torch.empty(0)
    check_trainable(part)


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
    message = r"any of the 2 parameters .*'spare.weight'.*take no part" if hidden else "The loss has no gradient"
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
    "constant": ({"reward": constant}, "no completion of 24 has an advantage"),
    "constant with the savings": ({"reward": constant, "credit": "dgpo"}, "no completion of 24 has an advantage"),
    "none": ({"reward": none}, "no completion of 24 has an advantage"),
    "no weight": ({"reward_weights": [0.0]}, "no completion of 24 has an advantage"),
    "truncated": ({"rollout": truncated, "mask_truncated_completions": True}, "no token of the 24 completions is in"),
    "tools": ({"rollout": masked}, "no token of the 24 completions is in the loss"),
    "one update": ({"reward": constant, "max_steps": 1}, "no completion of 8"),
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
    with pytest.raises(NothingTrainedError, match=r"all 3 updates left every parameter as it was, to the bit"):
        make(model, tmp_path, learning_rate=1e-30).train()


def test_the_first_update_of_a_warmup_is_a_warning(tiny_model, tmp_path, caplog):
    with caplog.at_level(logging.WARNING):
        make(tiny_model, tmp_path, max_steps=1, warmup_steps=10, lr_scheduler_type="constant_with_warmup").train()
    assert "the only update left every parameter as it was" in caplog.text


def test_every_update_skipped(tiny_model, tmp_path):
    trainer = make(tiny_model, tmp_path)
    loss = trainer._compute_loss
    trainer._compute_loss = lambda model, inputs: loss(model, inputs) * NAN
    with pytest.raises(NothingTrainedError, match="all 3 updates had a loss or a gradient that is not finite"):
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_not_finite_is_what_is_found(dtype):
    largest = torch.finfo(dtype).max
    model = torch.nn.ParameterDict({name: torch.full((500, 3), largest, dtype=dtype) for name in "abcd"})
    model["empty"] = torch.nn.Parameter(torch.zeros(0))
    model["integers"] = torch.nn.Parameter(torch.arange(3), requires_grad=False)
    assert nonfinite_names(model.named_parameters()) == []
    for value, name in ((NAN, "b"), (INF, "c"), (-INF, "d")):
        model[name].data[77, 1] = value
    assert nonfinite_names(model.named_parameters()) == ["b", "c", "d"]


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


# The command


def arguments(path, *more):
    rows = "".join(json.dumps({"prompt": f"{i}+{i}=", "answer": str(2 * i)}) + "\n" for i in range(3))
    (path / "data.jsonl").write_text(rows)
    return [
        "--model_name_or_path", "trl_credit:quickstart", "--dataset_name", str(path / "data.jsonl"), "--dtype", "float32",
        "--reward_funcs", "test_effect.constant", "--output_dir", str(path / "out"), "--use_cpu", "true", "--bf16", "false",
        "--report_to", "none", "--disable_tqdm", "true", "--save_strategy", "no", "--max_steps", "2",
        "--max_completion_length", "4", "--num_generations", "4", "--gradient_accumulation_steps", "1", *more,
    ]  # fmt: skip


def test_the_command_refuses_too_few_rows_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(train, "CreditGRPOTrainer", never)
    with pytest.raises(SystemExit) as error:
        train.main(arguments(tmp_path, "--per_device_train_batch_size", "16"))
    assert error.value.code == 2
    assert "error: The training data has 3 rows, and one generation batch takes 4 " in capsys.readouterr().err


def test_the_command_saves_no_model_that_was_not_trained(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(arguments(tmp_path, "--per_device_train_batch_size", "4"))
    assert error.value.code == 1
    said = capsys.readouterr()
    assert "trl-credit train: error: Nothing was trained: no completion of 8 has an advantage" in said.err
    assert said.err.rstrip().endswith("No model is saved.")
    assert "Model saved" not in said.out
    assert not (tmp_path / "out" / "model.safetensors").exists()


def test_the_command_saves_no_model_of_nan(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(arguments(tmp_path, "--per_device_train_batch_size", "4", "--weight_decay", "nan"))
    assert error.value.code in (1, 2)
    assert "nan" in capsys.readouterr().err.lower()
    assert not (tmp_path / "out" / "model.safetensors").exists()
