"""Reads rows as training and evaluation do."""

import json

from trl_credit.data import load_splits, prepare
from trl_credit.evaluation import EvalConfig
from trl_credit.evaluation.tasks import load_tasks


def user(text):
    return {"role": "user", "content": text}


def written(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def trained(path, **settings):
    """Prompts and solutions of training."""
    columns = [settings.get("problem_column"), settings.get("answer_column")]
    dataset = prepare(load_splits(path, text_columns=columns)["train"], **settings)
    return [(row["prompt"], row.get("solution")) for row in dataset]


def evaluated(path, **settings):
    """Prompts and solutions of the evaluation."""
    (task,) = load_tasks(EvalConfig(model="m", tasks=[f"t={path}"], **settings))
    return [
        (problem.prompt if isinstance(problem.prompt, str) else list(problem.prompt), problem.gold)
        for problem in task.problems
    ]


def both(path, **settings):
    """What both see alike."""
    pairs = trained(path, **settings)
    assert evaluated(path, **settings) == pairs
    return pairs
