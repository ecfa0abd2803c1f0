"""The training script: data, rewards, messages, and whole runs."""

import json
import shutil

import pandas as pd
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, get_peft_model_state_dict
from safetensors.torch import load_file
from trl.rewards import accuracy_reward

from trl_credit import train
from trl_credit.data import load_splits, prepare, report_bare_latex, report_unparsable
from trl_credit.extras.reward_guard import RewardError
from trl_credit.model_files import LocalModel, base_of_adapter, embedded_model_path
from trl_credit.recipe.recipe import Recipe
from trl_credit.rewards import accuracy, build_reward, judged, required_columns


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]
ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Data


@pytest.mark.parametrize("name", ["data.jsonl", "data.parquet"])
def test_files(name, tmp_path):
    splits = load_splits(write(tmp_path / name))
    assert splits["train"].to_list() == ROWS


def test_saved_folder(tmp_path):
    Dataset.from_list(ROWS).save_to_disk(tmp_path / "saved")
    assert load_splits(str(tmp_path / "saved"))["train"].to_list() == ROWS


def test_generated_tasks():
    first = load_splits("reasoning_gym:chain_sum", generated_size=5, generated_config={"max_terms": 2}, seed=1)["train"]
    assert first.column_names == ["problem", "answer"]
    assert len(first) == 5
    again = load_splits("reasoning_gym:chain_sum", generated_size=5, generated_config={"max_terms": 2}, seed=1)["train"]
    other = load_splits("reasoning_gym:chain_sum", generated_size=5, generated_config={"max_terms": 2}, seed=2)["train"]
    assert first.to_list() == again.to_list() != other.to_list()
    assert load_splits("trl_credit:arithmetic", generated_size=3)["train"].column_names == ["prompt", "answer"]


@pytest.mark.parametrize(
    ("name", "config", "message"),
    [
        ("missing.jsonl", None, "there is no file 'missing.jsonl'"),
        ("./nothing", None, "there is no file './nothing'"),
        ("reasoning_gym:chain_sums", None, "no task 'chain_sums'. Did you mean 'chain_sum'"),
        ("reasoning_gym:chain_sum", {"terms": 3}, "generated_dataset_config"),
        ("trl_credit:arithmetics", None, "Did you mean 'trl_credit:arithmetic'"),
        ("trl_credit:arithmetic", {"terms": 3}, "generated_dataset_config"),
    ],
)
def test_bad_sources(name, config, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"`(dataset_name|generated_dataset_config)`") as raised:
        load_splits(name, generated_config=config)
    assert message in str(raised.value)


def test_unreadable_file(tmp_path):
    (tmp_path / "broken.jsonl").write_text('{"problem": "1", \n nonsense')
    with pytest.raises(ValueError, match=r"cannot read '.*broken.jsonl'"):
        load_splits(str(tmp_path / "broken.jsonl"))
    (tmp_path / "data.xlsx").write_text("x")
    with pytest.raises(ValueError, match=r"must end in one of \.json, \.jsonl, \.parquet, \.csv"):
        load_splits(str(tmp_path / "data.xlsx"))


def test_prepare():
    dataset = prepare(
        Dataset.from_list(ROWS),
        problem_column="problem",
        answer_column="answer",
        system_prompt="Be right.",
        prompt_template="Solve {problem} with {braces}",
    )
    assert dataset[3] == {
        **ROWS[3],
        "prompt": [
            {"role": "system", "content": "Be right."},
            {"role": "user", "content": "Solve 3+3? with {braces}"},
        ],
        "solution": "6",
    }
    plain = prepare(Dataset.from_list(ROWS), problem_column="problem", plain_prompts=True)
    assert plain[1]["prompt"] == "1+1?"
    assert "solution" not in plain.column_names


def test_prepare_leaves_out_empty_rows_and_says_so(caplog):
    rows = [*ROWS[:2], {"problem": "x", "answer": " ", "extra": 0}, {"problem": "", "answer": "1", "extra": 0}]
    dataset = prepare(Dataset.from_list(rows), problem_column="problem", answer_column="answer")
    assert len(dataset) == 2
    assert "2 of 4 rows have an empty problem or answer and are left out, the first is row 2" in caplog.text
    with pytest.raises(ValueError, match="Every row"):
        prepare(Dataset.from_list(rows[2:]), problem_column="problem", answer_column="answer")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"problem_column": "problm"}, "`problem_column`: the dataset has no column 'problm'. Did you mean 'problem'"),
        ({"problem_column": "problem", "answer_column": "x"}, "`answer_column`: the dataset has no column 'x'"),
        ({}, "Known: answer, extra, problem. Set `problem_column` to the column"),
        ({"problem_column": "problem", "prompt_template": "Solve"}, "must contain the slot {problem}"),
        ({"problem_column": "problem", "plain_prompts": True, "system_prompt": "x"}, "has no effect"),
    ],
)
def test_prepare_errors(settings, message):
    with pytest.raises(ValueError, match="`") as raised:
        prepare(Dataset.from_list(ROWS), **settings)
    assert message in str(raised.value)


def test_system_prompt_without_effect():
    with pytest.raises(ValueError, match="`system_prompt` has no effect without `problem_column`"):
        prepare(Dataset.from_list([{"prompt": "1"}]), system_prompt="x")


def test_unparsable_answers_are_reported(caplog):
    assert report_unparsable(Dataset.from_dict({"solution": ["1", "sorry", r"\frac{1}{2}"]}), accuracy) == 1
    assert "1 of the first 3 answers do not parse" in caplog.text
    assert "'sorry'" in caplog.text
    with pytest.raises(ValueError, match="None of the first 2 answers parses"):
        report_unparsable(Dataset.from_dict({"solution": ["sorry", "what"]}), accuracy)
    assert report_unparsable(Dataset.from_dict({"solution": ["p - q", "2\\sqrt{3}", "$"]}), judged) == 1
    assert "`judged` will not score" in caplog.text


def test_bare_latex_is_reported(caplog):
    """`accuracy` takes 2 for the square root of 12; `judged` does not."""
    solutions = [r"2\sqrt{3}", r"$\frac{1}{2}$", "7", r"\boxed{\pi}"]
    assert report_bare_latex(Dataset.from_dict({"solution": solutions})) == 1
    assert r"1 of the first 4 answers are LaTeX without dollars, for example '2\\sqrt{3}'" in caplog.text
    assert accuracy([r"\boxed{2}"], [r"2\sqrt{3}"]) == [1.0]
    assert judged([r"\boxed{2}", r"\boxed{\sqrt{12}}"], [r"2\sqrt{3}"] * 2) == [0.0, 1.0]


# Rewards


def test_accuracy():
    solutions = ["7", "7", r"\frac{1}{2}", "sorry"]
    texts = [r"so \boxed{7}", r"\boxed{8}", r"\boxed{0.5}", r"\boxed{1}"]
    assert accuracy(texts, solutions) == [1.0, 0.0, 1.0, None]
    chats = [[{"role": "assistant", "content": text}] for text in texts]
    assert accuracy(chats, solutions) == accuracy_reward(chats, solutions)
    turns = [[{"role": "assistant", "content": r"\boxed{1}"}, {"role": "tool", "content": ""}, *c] for c in chats]
    assert accuracy(turns, solutions) == [1.0, 0.0, 1.0, None]
    assert accuracy(texts[:1], [7]) == [1.0]


def scaled(completions, extra, factor=1.0, **kwargs):
    return [factor * x for x in extra]


def make_scaled(factor):
    return lambda completions, extra, **kwargs: scaled(completions, extra, factor)


def test_build_reward(monkeypatch):
    assert build_reward("accuracy") is accuracy
    assert build_reward("accuracy_reward") is accuracy  # TRL's name
    assert build_reward("test_train.scaled") is scaled
    bound = build_reward('{"name": "test_train.scaled", "factor": 3.0}')
    assert bound(["a"], extra=[2]) == [6.0]
    assert bound.__name__ == "scaled"
    assert required_columns(bound) == required_columns(scaled) == ["extra"]
    made = build_reward({"name": "test_train.make_scaled", "factor": 4.0})
    assert made(["a"], extra=[2]) == [8.0]
    overlong = build_reward({"name": "soft_overlong_punishment", "max_completion_len": 10, "soft_punish_cache": 4})
    assert overlong(completion_ids=[[1] * 5, [1] * 10, [1] * 12]) == [0, -1.0, -1]


@pytest.mark.parametrize(
    ("arguments", "run", "lengths"),
    [
        ({}, 20480, (20480, 4096)),  # DAPO's
        ({}, 8, (8, 1)),
        ({}, 3, (3, 1)),
        ({"max_completion_len": 100}, None, (100, 20)),
        ({"max_completion_len": 100}, 50, (100, 20)),
        ({"soft_punish_cache": 30}, 100, (100, 30)),
    ],
)
def test_lengths_of_the_run(arguments, run, lengths):
    reward = build_reward({"name": "soft_overlong_punishment", **arguments}, run)
    assert (reward.max_completion_len, reward.soft_punish_cache) == lengths


def test_length_of_the_cosine():
    for arguments, run, length in (({}, 50, 50), ({"max_len": 100}, 50, 100), ({"max_len": 100}, None, 100)):
        reward = build_reward({"name": "cosine_scaled", **arguments}, run)
        ids = [[1] * (length // 2), [1] * length]
        assert reward([r"\boxed{7}"] * 2, ["7"] * 2, completion_ids=ids) == [0.75, 0.5]


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("accurcy", "unknown reward 'accurcy'. Did you mean 'accuracy'"),
        ("no_module.reward", "cannot load 'no_module.reward'"),
        ({"factor": 2}, "does not say the `name`"),
        ('{"name": ', "not valid JSON"),
        ("soft_overlong_punishment", "needs `max_completion_len`, or the run's `max_completion_length`"),
        ("cosine_scaled", "needs `max_len`, or the run's `max_completion_length`"),
        ({"name": "cosine_scaled", "max_len": 0}, "`max_len` of 'cosine_scaled' must be positive, got 0"),
        ({"name": "cosine_scaled", "max_len": 9, "max_value": 1}, "unexpected keyword argument 'max_value'"),
        (
            {"name": "soft_overlong_punishment", "max_completion_len": 1},
            "between 0 and `max_completion_len` (1), got 1",
        ),
        ({"name": "soft_overlong_punishment", "max_completion_len": 9, "soft_punish_cache": 9}, "got 9"),
        ({"name": "soft_overlong_punishment", "max_completion_len": 9, "soft_punish_cache": 0}, "got 0"),
        ({"name": "soft_overlong_punishment", "max_completion_len": "9"}, "not supported between"),
        ({"name": "test_train.make_scaled", "facto": 1}, "unexpected keyword argument 'facto'"),
    ],
)
def test_build_reward_errors(spec, message):
    with pytest.raises(ValueError, match="`reward_funcs`") as raised:
        build_reward(spec)
    assert message in str(raised.value)


# Whole runs


def line(tmp_path, tiny_model, *extra):
    return [
        "--model_name_or_path", tiny_model, "--output_dir", str(tmp_path / "out"),
        "--dataset_name", write(tmp_path / "data.jsonl"), "--problem_column", "problem", "--answer_column", "answer",
        "--reward_funcs", "accuracy", "helpers.letter_reward", "--dtype", "float32",
        "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "8",
        "--max_steps", "2", "--logging_steps", "1", "--gradient_checkpointing", "false", *ON_CPU, *extra,
    ]  # fmt: skip


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


def test_dataset_mixture(tmp_path, tiny_model, capsys):
    recipe = tmp_path / "recipe.yaml"
    files = [write(tmp_path / f"{name}.jsonl", ROWS[:4]) for name in "ab"]
    recipe.write_text(json.dumps({"datasets": [{"path": "json", "data_files": file} for file in files]}))
    rest = line(tmp_path, tiny_model)
    both = ["--config", str(recipe), *rest]
    with pytest.raises(SystemExit):
        train.main(both)
    assert "Both `datasets` and `dataset_name` are set" in capsys.readouterr().err
    place = rest.index("--dataset_name")
    arguments = Recipe.read([*both[:2], *rest[:place], *rest[place + 2 :]]).trainer_arguments()
    assert len(arguments["train_dataset"]) == 8


def test_evaluation_data_with_other_columns(tmp_path, tiny_model):
    other = write(tmp_path / "aime.jsonl", [{"question": "1+1?", "truth": "2"}] * 4)
    evaluation = ["--eval_dataset_name", other, "--eval_problem_column", "question", "--eval_answer_column", "truth"]
    parsed = Recipe.read(
        line(tmp_path, tiny_model, *evaluation, "--eval_strategy", "steps", "--per_device_eval_batch_size", "4")
    )
    arguments = parsed.trainer_arguments()
    assert arguments["eval_dataset"][0]["prompt"] == [{"role": "user", "content": "1+1?"}]
    assert arguments["eval_dataset"][0]["solution"] == "2"
    assert arguments["train_dataset"][1]["solution"] == "2"


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
    settings["reward_funcs"] = [{"name": "test_train.scaled", "factor": 2.0}, "helpers.letter_reward"]
    recipe.write_text(json.dumps(settings))  # JSON is YAML
    trainer = train.main(["--config", str(recipe), "--max_steps", "1"])
    assert trainer.credit_method.top_fraction == 0.3
    assert trainer.state.max_steps == 1
    assert (tmp_path / "out" / "adapter_model.safetensors").exists()


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--credit", "GCPO"], "Unknown credit method 'GCPO'. Did you mean 'gcpo'"),
        (["--top_fraction", "0.2"], "is a parameter of a credit method: write --credit"),
        (["--loss_type", "dap"], "`loss_type`: unknown value 'dap'. Did you mean 'dapo'"),
        (["--max_steps", "0"], "`max_steps` must be at least 1, or -1 for whole epochs, got 0"),
        (["--temperature", "0"], "`temperature` must be positive, got 0"),
        (["--num_iterations", "0"], "`num_iterations` must be at least 1, got 0"),
        (["--trim_padding", "maybe"], "argument --trim_padding/--trim-padding: Truthy value expected: got maybe"),
        (["--credit_cache_gib", "abc"], "argument --credit_cache_gib/--credit-cache-gib: invalid float value: 'abc'"),
        (["--beta", "-1"], "`beta` must be non-negative, got -1"),
        (["--config"], "`--config` needs the path of a recipe"),
        (["--model_name_or_path", "nope"], "`model_name_or_path`: 'nope' is neither a local folder"),
        (["--credit", '{"method": "gcpo", "negative_prompt": "column"}'], "needs a column 'negative_prompt'"),
        (["--credit", '{"method": "dgpo", "reference": "./nope"}'], "`reference` is './nope'"),
        (["--reward_weights", "1.0"], "reward weights (1) must match"),
        (["--credit", "gcop"], "Unknown credit method 'gcop'. Did you mean 'gcpo'"),
        (["--credit", '{"method": "gcpo"'], "`credit` is not valid JSON"),
        (["--lerning_rate", "1"], "Unknown field `lerning_rate` on the command line. Did you mean 'learning_rate'"),
        (["--lerning_rat", "1"], "Unknown field `lerning_rat` on the command line. Did you mean 'learning_rate'"),
        (["--learning_rat", "1"], "Unknown field `learning_rat` on the command line. Did you mean 'learning_rate'"),
        (["--configs", "x"], "Unknown field `configs` on the command line. Did you mean 'config'"),
        (["--config=none.yaml"], "`--config`: cannot read 'none.yaml'"),
        (["--config", "none.yaml"], "`--config`: cannot read 'none.yaml'"),
        (["--model_name_or_path", "./no/model"], "`model_name_or_path`: there is no folder './no/model'"),
        (["--dataset_name", "./no.jsonl"], "`dataset_name`: there is no file './no.jsonl'"),
        (["--answer_column", "anwser"], "`answer_column`: the dataset has no column 'anwser'. Did you mean 'answer'"),
        (["--reward_funcs", "acuracy"], "unknown reward 'acuracy'. Did you mean 'accuracy'"),
        (["--eval_strategy", "steps", "--eval_steps", "1", "--per_device_eval_batch_size", "4"], "there is no split 'test'"),
        (["--dataset_train_split", "trian"], "there is no split 'trian'. Did you mean 'train'"),
        (["--importance_sampling_level", "sequence", "--credit", "dgpo"], "cancels the token credit of 'dgpo'"),
        (["--generated_dataset_config", "{x"], "`generated_dataset_config` is not valid JSON"),
    ],
)  # fmt: skip
def test_messages(extra, message, tmp_path, tiny_model, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as stopped:
        train.main(line(tmp_path, tiny_model, *extra))
    assert stopped.value.code == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("trl-credit train: error: ")
    assert message in error


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("lerning_rate: 1", "Unknown field `lerning_rate` in the recipe. Did you mean 'learning_rate'"),
        ("- a list", "must be a YAML mapping"),
        ("a: [", "not valid YAML"),
        ("trim_padding: 3", "`trim_padding` must be true, false or unset, got 3"),
    ],
)
def test_bad_recipes(text, message, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(text)
    with pytest.raises(SystemExit):
        train.main(["--config", str(tmp_path / "recipe.yaml")])
    error = capsys.readouterr().err
    assert message in error
    assert "usage" not in error


def test_nothing_to_train(capsys):
    with pytest.raises(SystemExit):
        train.main([])
    assert "Nothing to do: give --config FILE.yaml" in capsys.readouterr().err


def test_chat_prompts_need_a_chat_template(tmp_path, tiny_model, capsys):
    from trl_credit.toy.build_model import build_tokenizer

    folder = tmp_path / "no_template"
    shutil.copytree(tiny_model, folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True)
    build_tokenizer().save_pretrained(folder)
    with pytest.raises(SystemExit):
        train.main(line(tmp_path, str(folder)))
    assert "has no chat template. Set `plain_prompts: true`" in capsys.readouterr().err


def test_one_reward_as_text(tmp_path, tiny_model):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("reward_funcs: accuracy")
    script_args, *_ = Recipe.read(["--config", str(recipe), "--output_dir", "out", *ON_CPU])
    assert script_args.reward_funcs == ["accuracy"]


def test_rewards_know_the_length_of_the_run(tmp_path, tiny_model):
    rewards = ["--reward_funcs", "soft_overlong_punishment", "--max_completion_length", "40"]
    arguments = Recipe.read(line(tmp_path, tiny_model, *rewards)).trainer_arguments()
    (reward,) = arguments["reward_funcs"]
    assert (reward.max_completion_len, reward.soft_punish_cache) == (40, 8)


def test_reward_without_its_column(tmp_path, tiny_model, capsys):
    data = write(tmp_path / "other.jsonl", [{"prompt": "1+1?"}] * 4)
    with pytest.raises(SystemExit):
        train.main(["--model_name_or_path", tiny_model, "--dataset_name", data, "--reward_funcs", "accuracy", *ON_CPU])
    assert "'accuracy' needs a dataset column 'solution' (set `answer_column`)" in capsys.readouterr().err


# Adapters


@pytest.fixture(scope="module")
def adapter(tmp_path_factory, tiny_model):
    """The output folder of a LoRA run."""
    folder = tmp_path_factory.mktemp("adapter")
    lora = ["--use_peft", "true", "--lora_r", "4", "--lora_alpha", "8", "--lora_target_modules", "q_proj", "v_proj"]
    train.main(line(folder, tiny_model, *lora, "--max_steps", "1", "--learning_rate", "1e-2"))
    return folder / "out"


def test_an_adapter_is_trained_on(adapter, tmp_path):
    before = load_file(adapter / "adapter_model.safetensors")
    trainer = train.main(
        line(tmp_path, str(adapter), "--credit", "dgpo", "--max_steps", "1", "--learning_rate", "1e-2", "--beta", "0.1")
    )
    assert trainer.model.peft_config["default"].r == 4
    trainable = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert trainable
    assert all(".default." in name for name in trainable)
    after = load_file(tmp_path / "out" / "adapter_model.safetensors")
    assert set(after) == set(before)
    assert any(not torch.equal(after[name], before[name]) for name in before)
    # The reference is the adapter as this run found it
    reference = get_peft_model_state_dict(trainer.model, adapter_name="ref")
    assert all(torch.equal(reference[name].cpu(), before[name]) for name in before)
    # And its output is one that others can go on with
    found = LocalModel.find(str(tmp_path / "out"))
    assert found.adapter == str(tmp_path / "out")


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (
            ["--use_peft", "true", "--lora_r", "8"],
            "is trained on as it is, but `lora_r` is 8, the adapter's 4;",
        ),
        (["--credit", '{"method": "dgpo", "reference": "./nope"}'], "`reference` is './nope'"),
    ],
)
def test_adapters_that_do_not_fit(extra, message, adapter, tmp_path, capsys):
    with pytest.raises(SystemExit) as stopped:
        train.main(line(tmp_path, str(adapter), *extra))
    assert stopped.value.code == 2
    assert message in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("./gone", "names the base model './gone', which is not there (looked from"),
        (None, "does not name its base model"),
        ("trl_credit:quick", "names the base model 'trl_credit:quick', which is not there"),
    ],
)
def test_adapters_without_their_base_model(base, message, adapter, tmp_path, capsys):
    copied = tmp_path / "copied"
    shutil.copytree(adapter, copied)
    settings = json.loads((copied / "adapter_config.json").read_text())
    (copied / "adapter_config.json").write_text(json.dumps(settings | {"base_model_name_or_path": base}))
    with pytest.raises(SystemExit):
        train.main(line(tmp_path, str(copied)))
    assert message in capsys.readouterr().err.splitlines()[-1]
    with pytest.raises(ValueError, match=r"^`model`: the adapter"):
        LocalModel.find(str(copied))


@pytest.mark.parametrize("base", ["trl_credit:quickstart", "/elsewhere/site-packages/trl_credit/quickstart/model"])
def test_adapters_of_the_embedded_model(base, tmp_path):
    LoraConfig(base_model_name_or_path=base, task_type="CAUSAL_LM").save_pretrained(tmp_path)
    assert base_of_adapter(str(tmp_path)) == embedded_model_path()


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
        with pytest.raises(RewardError, match=r"it called sys.exit\(0\)"):
            train.main(arguments)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r.yaml"], "write --config r.yaml"),
        (["--chat_template_kwargs", "{enable_thinking: false}"], "`chat_template_kwargs` is not valid JSON"),
        (["--model_name_or_path", __file__], "is a file: name its folder"),
        (["--report_to", "mlflow"], "`report_to`: 'mlflow' is not installed"),
    ],
)
def test_what_a_newcomer_wrote(words, message, tmp_path, tiny_model, capsys):
    data = write(tmp_path / "rows.jsonl", ROWS)
    with pytest.raises(SystemExit) as exit_:
        train.main(line(tmp_path, tiny_model, "--dataset_name", data, "--problem_column", "problem", *words))
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err


def test_images_for_a_text_model(tmp_path, tiny_model, capsys):
    data = write(tmp_path / "rows.jsonl", [{**row, "images": None} for row in ROWS])
    with pytest.raises(SystemExit):
        train.main(line(tmp_path, tiny_model, "--dataset_name", data, "--problem_column", "problem"))
    assert "a column 'images', which TRL shows to the model" in capsys.readouterr().err


def test_files_that_say_what_is_wrong_with_them(tmp_path):
    path = tmp_path / "twice.csv"
    path.write_text("problem,answer,answer\n1+1,2,3\n")
    with pytest.raises(ValueError, match="it has 2 columns 'answer': rename or remove all but one"):
        load_splits(str(path), text_columns=["problem", "answer"])
    path = tmp_path / "wide.jsonl"
    path.write_text('{"problem": "1+1"}\n', encoding="utf-16")
    with pytest.raises(ValueError, match="iconv -f UTF-16"):
        load_splits(str(path))
