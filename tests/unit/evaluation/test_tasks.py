"""Tasks and their prompts."""

import json

import pytest
from datasets import Dataset
from support.evaluation import config

from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.tasks import TASKS, load_tasks


# ---- tasks


def test_prompts_of_a_task(sums, tmp_path):
    (task,) = load_tasks(config(sums, tmp_path))
    assert task.name == "sums"
    assert task.problems[1].question == "1+2 ="
    assert task.problems[1].answer == "3"
    (message,) = task.problems[1].prompt
    assert message["role"] == "user"
    assert message["content"].startswith("1+2 =")
    assert message["content"].endswith("\\boxed{}.")
    own = config(sums, tmp_path, system_prompt="Be brief.", prompt_template="Q: {problem} {x}", preset="dapo")
    assert load_tasks(own)[0].problems[0].prompt == (
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Q: 0+1 = {x}"},
    )
    plain = config(sums, tmp_path, plain_prompts=True, prompt_template="{problem}", limit=2)
    assert [problem.prompt for problem in load_tasks(plain)[0].problems] == ["0+1 =", "1+2 ="]


def test_a_named_task_from_a_file(tmp_path, sums):
    (task,) = load_tasks(config(sums, tmp_path, tasks=[f"aime24={sums}"]))
    assert task.name == "aime24"
    assert len(task.problems) == 6


def test_own_columns_and_formats(tmp_path):
    rows = {"frage": ["2+2", "3+3"], "antwort": [4.0, None]}
    Dataset.from_dict(rows).to_parquet(str(tmp_path / "x.parquet"))
    settings = {"tasks": [str(tmp_path / "x.parquet")], "problem_column": "frage", "answer_column": "antwort"}
    with pytest.raises(ValueError, match=r"'x' has no answer in row 1, counted from 0 \(column 'antwort'\): None"):
        load_tasks(EvalConfig(model="m", **settings))
    (task,) = load_tasks(EvalConfig(model="m", limit=1, **settings))
    assert task.problems[0].answer == "4"
    with pytest.raises(ValueError, match=r"set `problem_column` for 'x'. Its columns: 'frage', 'antwort'"):
        load_tasks(EvalConfig(model="m", tasks=settings["tasks"]))
    with pytest.raises(ValueError, match=r"`answer_column`: 'x' has no column 'antwor'. Did you mean 'antwort'"):
        load_tasks(EvalConfig(model="m", **{**settings, "answer_column": "antwor"}))


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        (["aime2024"], "unknown task 'aime2024'. Did you mean 'aime24'"),
        (["aime24"], "aime24=FILE.jsonl"),  # offline
        (["aime24="], "must be NAME=SOURCE"),
        (["no/such-dataset-xyz"], "`tasks`: cannot read"),
        (["./missing.jsonl"], "`tasks`: there is no file"),
        (["reasoning_gym:chain_su"], "Did you mean 'chain_sum'"),
        (["trl_credit:x"], "`tasks`: unknown dataset"),
        (["trl_credit:arithmetic", "trl_credit:arithmetic"], "is listed twice"),
    ],
)
def test_tasks_that_cannot_be_loaded(tasks, message):
    with pytest.raises(ValueError, match=message):
        load_tasks(EvalConfig(model="m", tasks=tasks))


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"tasks": ["aime24"], "problem_column": "problem"}, "problem_column"),
        ({"tasks": ["trl_credit:arithmetic"], "dataset_split": "test"}, "dataset_split"),
        ({"tasks": ["aime24", "gsm8k"], "generated_dataset_size": 5}, "generated_dataset_size"),
    ],
)
def test_settings_of_other_tasks_have_no_effect(settings, field):
    with pytest.raises(ValueError, match=f"`{field}` has no effect on the tasks {settings['tasks'][0]}"):
        load_tasks(EvalConfig(model="m", **settings))


def test_prompts_of_plain_text_have_no_system_prompt():
    settings = {"tasks": ["trl_credit:arithmetic"], "generated_dataset_size": 2}
    with pytest.raises(
        ValueError, match="`system_prompt` has no effect: the prompts of trl_credit:arithmetic are plain text"
    ):
        load_tasks(EvalConfig(model="m", system_prompt="x", **settings))


def test_images_are_not_asked_blindly(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text('{"problem": "<image>a", "answer": "1", "images": ["x.png"]}\n')
    with pytest.raises(ValueError, match=r"has a column 'images', and problems are asked as text only"):
        load_tasks(EvalConfig(model="m", tasks=[str(path)]))


def test_gsm8k_from_a_file_has_its_marker(tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text(json.dumps({"question": "How many?", "answer": "3 * 4 = 12\n#### 12"}) + "\n")
    assert load_tasks(EvalConfig(model="m", tasks=[f"gsm8k={path}"]))[0].problems[0].answer == "12"


def test_generated_tasks():
    names = ["trl_credit:arithmetic", "reasoning_gym:chain_sum"]
    tasks = load_tasks(EvalConfig(model="m", tasks=names, generated_dataset_size=3))
    assert [task.name for task in tasks] == names
    problem = tasks[0].problems[0]
    assert problem.prompt == problem.question
    assert str(eval(problem.question.removesuffix("="))) == problem.answer
    assert all(len(task.problems) == 3 for task in tasks)
    assert (
        load_tasks(EvalConfig(model="m", tasks=["trl_credit:arithmetic"], generated_dataset_seed=1))[0].sha256
        != tasks[0].sha256
    )


def test_gsm8k_answers_are_what_follows_the_marker(monkeypatch):
    rows = Dataset.from_dict({"question": ["How many?"], "answer": ["3 * 4 = <<3*4=12>>12\n#### 12"]})
    monkeypatch.setattr("trl_credit.evaluation.tasks.load_splits", lambda *a, **k: {"test": rows})
    assert load_tasks(EvalConfig(model="m", tasks=["gsm8k"]))[0].problems[0].answer == "12"


def test_named_tasks_name_their_columns():
    assert all(spec.split and spec.problem_column and spec.answer_column for spec in TASKS.values())


def test_the_identity_of_problems_with_one_answer_stays(sums):
    (task,) = load_tasks(EvalConfig(model="m", tasks=[sums]))
    assert task.identity() == {
        "problems": 6,
        "sha256": "826c49603ac9a9498f7746e47deaa16b3ea150964b77a909c58eb2deeef1b13b",
        "prompts_sha256": "994d6b183a5468e28a5f7d3060045143d615a8e26ec3d9a4fbe0c1d77a60f82a",
        "answer_pattern": None,
    }
