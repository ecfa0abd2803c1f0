"""Measures what `credit_log_steps` costs: `python benchmarks/credit_log.py [MODEL]`.

Trains with and without it on the same rollouts. Prints the time spent on showing the credit, and its share of a step if
this is done every 50 updates. MODEL is a folder (such as one from `examples/convert_smollm2.py`), by default the
embedded model.
"""

import sys
import tempfile
import time

import torch

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import correct_answer, make_dataset
from trl_credit.trainer.credit_log import CreditLog


UPDATES, EVERY = 8, 50


def main() -> None:
    torch.set_num_threads(1)
    model = sys.argv[1] if len(sys.argv) > 1 else embedded_model_path()
    spent = {"keep": [], "write": []}

    def timed(name, original):
        def call(self, *args, **kwargs):
            start = time.perf_counter()
            result = original(self, *args, **kwargs)
            spent[name].append(time.perf_counter() - start)
            return result

        return call

    CreditLog.see = timed("keep", CreditLog.see)
    CreditLog._write = timed("write", CreditLog._write)
    with tempfile.TemporaryDirectory() as folder:
        trainer = CreditGRPOTrainer(
            model=model,
            reward_funcs=correct_answer if len(sys.argv) == 1 else _length,
            args=CreditGRPOConfig(
                output_dir=folder,
                credit={"method": "gcpo", "negative_prompt": "!{prompt}"},
                credit_log_steps=1,
                max_steps=UPDATES,
                per_device_train_batch_size=64 if len(sys.argv) == 1 else 8,
                num_generations=8,
                max_completion_length=40 if len(sys.argv) == 1 else 128,
                model_init_kwargs={"dtype": "float32"},
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            ),
            train_dataset=make_dataset(200),
        )
        trainer.train()
    steps = sorted(entry["step_time"] for entry in trainer.state.log_history if "step_time" in entry)
    step = steps[len(steps) // 2]
    # The first page also compiles the templates
    first, later = spent["write"][0], sorted(spent["write"][1:])[len(spent["write"][1:]) // 2]
    keep = sum(spent["keep"]) / UPDATES
    print(f"a step: {step:.3f} s; keeping what is shown: {keep:.4f} s, writing it: {later:.3f} s (first {first:.3f} s)")
    print(f"every {EVERY} updates: {100 * (keep + later) / (EVERY * step):.3f} % of the steps' time")


def _length(completions, **kwargs) -> list[float]:
    return [len(completion) / 100 for completion in completions]


if __name__ == "__main__":
    main()
