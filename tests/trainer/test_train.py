"""`trl_credit.train`, end to end."""

import json

import pandas as pd
import pytest
from support.effect import arguments
from support.train import line, write

from trl_credit import train
from trl_credit.extras.reward_guard import RewardError


def test_the_command_saves_no_model_that_was_not_trained(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(arguments(tmp_path, "--per_device_train_batch_size", "4"))
    assert error.value.code == 1
    said = capsys.readouterr()
    assert "trl-credit train: error: Nothing was trained: none of the 8 completions has an advantage" in said.err
    assert said.err.rstrip().endswith("No model is saved.")
    assert "Model saved" not in said.out
    assert not (tmp_path / "out" / "model.safetensors").exists()


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]

ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


def test_run(tmp_path, tiny_model):
    trainer = train.main(
        line(
            tmp_path, tiny_model, "--credit", '{"method": "dgpo", "temperature": 0.1}', "--remove_unused_columns", "true",
            "--eval_strategy", "steps", "--eval_steps", "2", "--test_split_size", "0.34",
            "--per_device_eval_batch_size", "4", "--save_strategy", "steps", "--save_steps", "1",
        )
    )  # fmt: skip
    assert trainer.credit_method.temperature == 0.1
    history = trainer.state.log_history
    assert "rewards/accuracy/mean" in history[0]
    assert any("eval_credit/weight_std" in entry for entry in history)
    assert (tmp_path / "out" / "model.safetensors").exists()
    assert "2605.03327" in (tmp_path / "out" / "README.md").read_text()
    resumed = train.main(
        line(tmp_path, tiny_model, "--credit", "dgpo", "--resume_from_checkpoint", str(tmp_path / "out/checkpoint-1"))
    )
    assert resumed.state.global_step == 2
    finished = train.main(line(tmp_path, tiny_model, "--credit", "gcpo", "--resume_from_checkpoint", "auto"))
    assert finished.updates_made == 0
    assert "2605.03327" in (tmp_path / "out" / "README.md").read_text()  # the card is of the run that trained


def test_run_on_conversations_with_several_answers(tmp_path, tiny_model):
    rows = [
        {
            "messages": [{"from": "human", "value": f"{i}+{i}?"}, {"from": "gpt", "value": str(2 * i)}],
            "gold": {"answers": [str(2 * i), "x"] if i % 2 else [str(2 * i)]},
            "completions": ["old"],
        }
        for i in range(8)
    ]
    path = tmp_path / "nested.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    trainer = train.main(
        line(
            tmp_path, tiny_model, "--dataset_name", str(path), "--problem_column", "messages", "--answer_column",
            "gold.answers", "--answer_match", "any", "--reward_funcs", "judged", "helpers.letter_reward",
            "--log_completions", "true", "--max_steps", "1",
        )
    )  # fmt: skip
    assert "rewards/judged/mean" in trainer.state.log_history[0]
    (table,) = (tmp_path / "out" / "completions").iterdir()
    logged = pd.read_parquet(table)
    (message,) = logged["prompt"][0]
    assert (message["role"], message["content"][-1]) == ("user", "?")
    number = int(message["content"].partition("+")[0])
    assert logged["solution"][0] == (f"{2 * number} or x" if number % 2 else str(2 * number))


def test_run_lora_from_a_recipe(tmp_path, tiny_model):
    recipe = tmp_path / "recipe.yaml"
    arguments = line(tmp_path, tiny_model)
    pairs = {}
    for token in arguments:
        if token.startswith("--"):
            key = token[2:]
            pairs[key] = []
        else:
            pairs[key].append(token)
    settings = {k: v[0] if len(v) == 1 else v for k, v in pairs.items()}
    settings |= {"credit": {"method": "gcpo", "top_fraction": 0.3}, "use_peft": True, "lora_r": 4}
    settings["lora_target_modules"] = ["q_proj", "v_proj"]
    settings["reward_funcs"] = [{"name": "support.rewards.scaled", "factor": 2.0}, "helpers.letter_reward"]
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    trainer = train.main(["--config", str(recipe), "--max_steps", "1"])
    assert trainer.credit_method.top_fraction == 0.3
    assert trainer.state.max_steps == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("body", "place"),
    [
        ("import sys\nsys.exit(0)\n", "cannot be imported"),
        ("def f(completions, **kwargs):\n    raise SystemExit(0)\n", ""),
    ],
)
def test_a_reward_that_ends_the_process(body, place, tmp_path, tiny_model, capsys):
    """Not with its exit code, which may be 0."""
    file = tmp_path / "ends.py"
    file.write_text(body)
    data = write(tmp_path / "rows.jsonl", ROWS)
    words = ["--dataset_name", data, "--problem_column", "problem", "--reward_funcs", f"{file}:f"]
    arguments = line(tmp_path, tiny_model, *words)
    if place:
        with pytest.raises(SystemExit) as exit_:
            train.main(arguments)
        assert exit_.value.code == 2
        assert place in capsys.readouterr().err
    else:
        with pytest.raises(SystemExit) as exit_:
            train.main(arguments)
        assert exit_.value.code == 1
        assert "it called sys.exit(0)" in capsys.readouterr().err


MISTAKES = {
    "raises": ("[1 / 0 for text in completions]", "completion 0 of 4: ZeroDivisionError: division by zero. Prompt:"),
    "short": ("[1.0]", "4 completions together, but not on any single one: ValueError: it returned 1 rewards for 4"),
    "text": ("['good' for text in completions]", "completion 0 of 4: it returned 'good', which is not a number"),
}
WAYS_OUT = {
    "raises": "`on_reward_error: exclude` leaves such completions out.",
    "short": "return a list with a number for each (`None` for no reward).",
    "text": "`on_reward_error: exclude` leaves such completions out.",
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_in_a_reward_function_is_named_on_the_last_line(name, tmp_path, tiny_model, capsys):
    file = tmp_path / "rewards.py"
    code, message = MISTAKES[name]
    file.write_text(f"def {name}(completions, **kwargs):\n    return {code}\n")
    data = write(tmp_path / "rows.jsonl", ROWS)
    words = ["--dataset_name", data, "--problem_column", "problem", "--reward_funcs", f"{file}:{name}"]
    with pytest.raises(SystemExit) as exit_:
        train.main(line(tmp_path, tiny_model, *words, "--disable_tqdm", "false"))
    assert exit_.value.code == 1
    assert isinstance(exit_.value.__cause__, RewardError)
    shown = capsys.readouterr().err
    last = shown.splitlines()[-1]
    assert last.startswith(f"trl-credit train: error: The reward function {name!r} failed on {message}")
    assert last.endswith(WAYS_OUT[name])
    assert (f'rewards.py", line 2, in {name}' in shown) == (name == "raises")  # the function's own traceback
    assert 'reward_guard.py"' not in shown
    if name == "raises":
        assert isinstance(exit_.value.__cause__.__cause__, ZeroDivisionError)


def test_ctrl_c_says_how_to_continue(tmp_path, capsys):
    words = arguments(tmp_path)
    words[words.index("--reward_funcs") + 1] = "support.rewards.interrupted"
    with pytest.raises(KeyboardInterrupt):
        train.main(words)
    assert "Stopped after update 0." in (said := capsys.readouterr().err)
    assert "run the same command with --resume_from_checkpoint auto." in said
