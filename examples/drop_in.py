# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-credit"]
#
# [tool.uv.sources]
# trl-credit = { path = "..", editable = true }  # outside the clone: the clone's path, or { git = "ITS ADDRESS" }
# ///
"""A plain TRL script with token-level credit. The only change is one import.

    python examples/drop_in.py
    uv run examples/drop_in.py  # in an environment of its own, which the lines above describe

GCPOTrainer is a drop-in too, if the model understands its negative prompt, an English note. For the embedded model, which
reads only sums, the mark that it was taught takes its place.
"""

import torch
from trl import GRPOConfig

from trl_credit import DGPOTrainer as GRPOTrainer  # was: from trl import GRPOTrainer
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import correct_answer, make_dataset


torch.set_num_threads(1)  # so small a model is fastest on one thread

args = GRPOConfig(
    output_dir="outputs/drop_in",
    per_device_train_batch_size=64,
    max_completion_length=40,
    learning_rate=5e-5,
    max_steps=20,
    logging_steps=5,
    report_to="none",
    use_cpu=True,
    bf16=False,
)
trainer = GRPOTrainer(
    model=embedded_model_path(),
    reward_funcs=correct_answer,
    args=args,
    train_dataset=make_dataset(1000),
)
trainer.train()

rewards = [entry["reward"] for entry in trainer.state.log_history if "reward" in entry]
print(f"reward {rewards[0]:.2f} in the first updates, {rewards[-1]:.2f} in the last")
