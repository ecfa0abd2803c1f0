# /// script
# requires-python = ">=3.11"
# dependencies = ["trl-credit"]
#
# [tool.uv.sources]
# trl-credit = { path = "..", editable = true }  # outside the clone: the clone's path, or { git = "ITS ADDRESS" }
# ///
"""GRPO and distillation in one advantage, A_t = l A_GRPO + (1 - l) A_distillation, with l moving from 0.5 to 1.

    python examples/grpo_and_distillation.py

A_distillation = log pi_teacher - log pi_student of each sampled token. The teacher is here the policy as it was before
training (self-distillation), which holds the policy back while l is small; a larger model with the same tokenizer works
as well. In SDPO the teacher is the policy with feedback in its prompt; here it is a plain model. This is the form of the
mix that https://github.com/huggingface/trl/issues/7291 asks for.
"""

import torch

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import correct_answer, make_dataset


torch.set_num_threads(1)  # so small a model is fastest on one thread

UPDATES = 20
TEACHER = embedded_model_path()  # or a larger model: "Qwen/Qwen2.5-7B-Instruct" for a policy of 1.5B

credit = {
    "method": "mix",
    "advantage": {"from": 0.5, "to": 1.0, "updates": UPDATES},  # l
    "parts": [
        {"method": "teacher", "model": TEACHER, "coefficient": {"from": 0.5, "to": 0.0, "updates": UPDATES}}
    ],  # 1 - l
}
args = CreditGRPOConfig(
    output_dir="outputs/grpo_and_distillation",
    credit=credit,
    per_device_train_batch_size=64,
    max_completion_length=40,
    learning_rate=5e-5,
    max_steps=UPDATES,
    logging_steps=5,
    report_to="none",
    use_cpu=True,
    bf16=False,
)
trainer = CreditGRPOTrainer(
    model=embedded_model_path(),
    reward_funcs=correct_answer,
    args=args,
    train_dataset=make_dataset(1000),
)
trainer.train()

entries = [entry for entry in trainer.state.log_history if "reward" in entry]
print(f"reward {entries[0]['reward']:.2f} in the first updates, {entries[-1]['reward']:.2f} in the last")
gaps = [value for entry in entries for name, value in entry.items() if name.endswith("teacher_gap")]
print(f"log pi_teacher - log pi_student of a token: {gaps[0]:.4f} nats, then {gaps[-1]:.4f}")
