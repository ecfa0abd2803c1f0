"""Errors of `trl_credit.train`, before a model is loaded."""

import shutil

import pytest
from support.effect import arguments, never
from support.train import line, write

from trl_credit import train


def test_the_command_refuses_too_few_rows_before_the_model_is_loaded(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("trl_credit.trainer.grpo.CreditGRPOTrainer", never)
    with pytest.raises(SystemExit) as error:
        train.main(arguments(tmp_path, "--per_device_train_batch_size", "16"))
    assert error.value.code == 2
    assert "error: The training data has 3 rows, but a generation batch needs 4 " in capsys.readouterr().err


def test_the_command_saves_no_model_of_nan(tmp_path, capsys):
    with pytest.raises(SystemExit) as error:
        train.main(arguments(tmp_path, "--per_device_train_batch_size", "4", "--weight_decay", "nan"))
    assert error.value.code in (1, 2)
    assert "nan" in capsys.readouterr().err.lower()
    assert not (tmp_path / "out" / "model.safetensors").exists()


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]

ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


@pytest.mark.parametrize(
    ("extra", "message"),
    [
        (["--credit", "GCPO"], "Unknown credit method 'GCPO'. Did you mean 'gcpo'"),
        (["--top_fraction", "0.2"], "on the command line --credit '{method: gcpo, top_fraction: ...}'"),
        (["--loss_type", "dap"], "`loss_type`: unknown value 'dap'. Did you mean 'dapo'"),
        (["--max_steps", "0"], "`max_steps` must be at least 1, or -1 for whole epochs, got 0"),
        (["--temperature", "0"], "`temperature` must be positive, got 0"),
        (["--num_iterations", "0"], "`num_iterations` must be at least 1, got 0"),
        (["--trim_padding", "maybe"], "argument --trim_padding/--trim-padding: Truthy value expected: got maybe"),
        (["--credit_cache_gib", "abc"], "argument --credit_cache_gib/--credit-cache-gib: invalid float value: 'abc'"),
        (["--beta", "-1"], "`beta` must be non-negative, got -1"),
        (["--config"], "`--config` needs the path of a recipe"),
        (["--model_name_or_path", "nope"], "`model_name_or_path`: 'nope' is neither a folder with a model"),
        (["--credit", '{"method": "gcpo", "negative_prompt": "column"}'], "needs a column 'negative_prompt'"),
        (["--credit", '{"method": "dgpo", "reference": "./nope"}'], "`reference`: there is no folder './nope'"),
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
        (["--report_to", "wandb", "mlflow"], "In a recipe, write report_to: [wandb, mlflow]."),
        (["--metric_for_best_model", "rewards/accuracy_reward/mean"], "'accuracy_reward'. Did you mean 'accuracy'"),
        (["--metric_for_best_model", "eval_rewards/acuracy/mean"], "is logged as 'acuracy'. Did you mean 'accuracy'"),
        (["--use_peft", "true", "--beta", "0.1", "--sync_ref_model", "true"], "nothing to update with `use_peft`"),
        (["--generated_dataset_config", "{x"], "`generated_dataset_config` is not valid YAML: expected ',' or '}'"),
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


def test_reward_without_its_column(tmp_path, tiny_model, capsys):
    data = write(tmp_path / "other.jsonl", [{"prompt": "1+1?"}] * 4)
    with pytest.raises(SystemExit):
        train.main(["--model_name_or_path", tiny_model, "--dataset_name", data, "--reward_funcs", "accuracy", *ON_CPU])
    assert "'accuracy' needs a dataset column 'solution' (set `answer_column`)" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["r.yaml"], "write --config r.yaml"),
        (["--chat_template_kwargs", "{enable_thinking:false}"], "a space after the colon of 'enable_thinking:false'"),
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
    assert "a column 'images', which TRL passes to the model" in capsys.readouterr().err
