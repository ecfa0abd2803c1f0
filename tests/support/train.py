"""Writes data files."""

import json

from datasets import Dataset


ON_CPU = ["--use_cpu", "true", "--bf16", "false", "--report_to", "none", "--disable_tqdm", "true"]

ROWS = [{"problem": f"{i}+{i}?", "answer": str(2 * i), "extra": i} for i in range(12)]


def write(path, rows=ROWS):
    if path.suffix == ".parquet":
        Dataset.from_list(rows).to_parquet(path)
    else:
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


# Whole runs


def line(tmp_path, tiny_model, *extra):
    return [
        "--model_name_or_path", tiny_model, "--output_dir", str(tmp_path / "out"),
        "--dataset_name", write(tmp_path / "data.jsonl"), "--problem_column", "problem", "--answer_column", "answer",
        "--reward_funcs", "accuracy", "helpers.letter_reward", "--dtype", "float32",
        "--per_device_train_batch_size", "4", "--num_generations", "4", "--max_completion_length", "8",
        "--max_steps", "2", "--logging_steps", "1", "--gradient_checkpointing", "false", *ON_CPU, *extra,
    ]  # fmt: skip
