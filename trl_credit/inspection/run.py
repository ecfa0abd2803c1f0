"""Scores completions for `trl-credit inspect` and writes the results."""

import json
from pathlib import Path
from typing import Any


def inspect(config) -> tuple[list, dict[str, Any]]:
    """Returns the records that an [`InspectConfig`] asks for, and a description of them all.

    Raises:
        ValueError: The model, data or file does not exist, or they do not fit together.
    """
    from .sources import read_completions

    completions, scored = None, None
    if config.completions:
        completions, scored = read_completions(config.completions, config.max_completions)
        if scored is not None and config.model is None:
            if config.methods is not None:
                raise ValueError(
                    "`methods` has no effect on token credit that is shown as it was written. To score the completions "
                    "again, set `model`."
                )
            return scored
        if config.model is None:
            raise ValueError(
                "`model` is not set: these completions have no token credit yet, and a model must score them."
            )
    return _score(config, completions)


def check_folder(output_dir: str) -> None:
    """Creates the output folder. Raises `ValueError` if that fails."""
    from .._util.settings import check_output_dir

    check_output_dir(output_dir)
    try:
        Path(output_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:  # for example, a read-only file system
        reason = (error.strerror or str(error)).lower()
        raise ValueError(f"`output_dir`: cannot write to {output_dir!r}: {reason}. Name another folder.") from error


def build_scorer(config, rewards: list, **settings: Any) -> Any:
    """The [`CreditScorer`] of a [`ScoringConfig`], with its methods and these reward functions. Fills in `reference` and
    `dtype`. `settings` are further fields of [`CreditGRPOConfig`]."""
    import torch

    from ..model_files import LocalModel
    from .scoring import CreditScorer

    files = LocalModel.find(config.model, trust_remote_code=bool(config.trust_remote_code))
    if files.adapter and config.reference is None:
        config.reference = files.path
    elif config.reference is not None:
        config.reference = LocalModel.find(config.reference, field="reference", adapter=False, needs=None).path
    methods = config.credit_methods()
    config.dtype = config.dtype or ("bfloat16" if torch.accelerator.is_available() else "float32")
    torch.manual_seed(config.seed)
    settings |= {
        "temperature": 1.0 if config.temperature is None else config.temperature,
        "chat_template_kwargs": config.chat_template_kwargs,
        "max_completion_length": config.max_completion_length or 256,
        "seed": config.seed,
        "trust_remote_code": bool(config.trust_remote_code),
    }
    if rewards:
        settings |= {"reward_funcs": rewards, "reward_weights": config.reward_weights}
    model: Any = files.path
    if files.adapter:
        from peft import PeftModel
        from transformers import AutoModelForCausalLM

        base = AutoModelForCausalLM.from_pretrained(
            files.path, dtype=config.dtype, trust_remote_code=bool(config.trust_remote_code)
        )
        model = PeftModel.from_pretrained(base, files.adapter)
    return CreditScorer(model, methods, processing_class=files.tokenizer(), dtype=config.dtype, **settings)


def _score(config, completions) -> tuple[list, dict[str, Any]]:
    from .scoring import check_turns

    check_turns(config.credit_methods(), completions)
    examples, rewards = None, []
    if completions is None and config.prompts:
        examples, rewards = [{"prompt": _prompt(config, text)} for text in config.prompts], _rewards(config, ["prompt"])
    elif completions is None:
        examples, rewards = read_rows(config)
    scorer = build_scorer(config, rewards)
    if completions is None:
        most = max(1, config.max_completions // config.num_generations)
        completions = scorer.generate(examples[:most], config.num_generations)
    records = scorer.score(completions[: config.max_completions], one_batch=True)
    about = {
        "title": "Token credit",
        "model": config.model,
        "reference": config.reference,
        "completions": config.completions or config.dataset_name or "prompts of the command line",
        "temperature": 1.0 if config.temperature is None else config.temperature,
        "dtype": config.dtype,
        "seed": config.seed,
        "methods": {label: method.to_dict() for label, method in scorer.methods.items()},
        "advice": scorer.advice,
    }
    return records, about


def read_rows(config) -> tuple[list[dict], list]:
    """The data's first `num_prompts` rows, and the reward functions, of a [`ScoringConfig`]."""
    from itertools import islice

    from .._util.text import nearest
    from ..data import load_splits, prepare

    splits = load_splits(
        config.dataset_name,
        generated_size=config.num_prompts,
        generated_config=config.generated_dataset_config,
        seed=config.seed,
        text_columns=(config.problem_column, config.answer_column, "prompt"),
    )
    split = config.dataset_train_split or "train"
    if split not in splits:
        raise ValueError(f"`dataset_train_split`: there is no split {split!r}. {nearest(split, splits)}")
    dataset = prepare(
        splits[split],
        problem_column=config.problem_column,
        answer_column=config.answer_column,
        answer_match=config.answer_match,
        system_prompt=config.system_prompt,
        prompt_template=config.prompt_template,
        plain_prompts=bool(config.plain_prompts),
    )
    return list(islice(dataset, config.num_prompts)), _rewards(config, dataset.column_names)


def _rewards(config, columns: list[str]) -> list:
    """The reward functions. Raises `ValueError` if one needs a column that there is not."""
    from .._trl import get_callable_name
    from ..rewards import build_reward, required_columns

    rewards = [build_reward(spec, config.max_completion_length or 256) for spec in config.reward_funcs or []]
    for function in rewards:
        for column in required_columns(function):
            if column not in columns:
                raise ValueError(
                    f"`reward_funcs`: {get_callable_name(function)!r} needs a column {column!r}; there are "
                    f"{', '.join(columns)}."
                )
    return rewards


def _prompt(config, text: str) -> str | list[dict]:
    """The prompt: chat messages if the model has a chat template, else text."""
    from ..model_files import LocalModel

    plain = config.plain_prompts
    if plain is None:
        plain = (
            LocalModel.find(config.model, trust_remote_code=bool(config.trust_remote_code)).tokenizer().chat_template
            is None
        )
    system = [{"role": "system", "content": config.system_prompt}] if config.system_prompt else []
    text = (config.prompt_template or "{problem}").replace("{problem}", text)
    return text if plain else [*system, {"role": "user", "content": text}]


def write(config, records: list, about: dict[str, Any]) -> None:
    """Writes the records to the output folder and prints some."""
    from rich.console import Console

    from .._util.files import write_atomically
    from ..records.page import write_credit_report
    from ..records.record import to_json, write_parquet
    from ..records.terminal import render
    from ..report.page import clean

    folder = Path(config.output_dir)
    write_parquet(folder / "credit.parquet", records, about)
    about = clean(about)
    lines = json.dumps(
        {"about": about, "completions": [to_json(record) for record in records]}, default=str, allow_nan=False
    )
    write_atomically(folder / "credit.json", [lines])
    write_credit_report(folder / "credit.html", records, about)
    # The most informative first: those with the largest advantages
    shown = sorted(records, key=lambda record: -abs(record.advantage or 0.0))
    render(shown, about, Console(), limit=config.show)
