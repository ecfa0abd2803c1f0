"""A plain TRL script with token-level credit: the import is the change, and `credit` names the method.

python examples/drop_in.py            # token credit by GCPO
python examples/drop_in.py --credit dgpo
"""

import argparse

from trl import GRPOConfig

from trl_credit import DGPOTrainer, GCPOTrainer  # was: from trl import GRPOTrainer
from trl_credit.quickstart.task import correct_answer, make_dataset
from trl_credit.train import embedded_model_path


parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
parser.add_argument("--credit", choices=["gcpo", "dgpo"], default="gcpo")
parser.add_argument("--max_steps", type=int, default=20)
arguments = parser.parse_args()

args = GRPOConfig(
    output_dir="outputs/drop_in",
    per_device_train_batch_size=64,
    max_completion_length=40,
    learning_rate=5e-5,
    max_steps=arguments.max_steps,
    logging_steps=5,
    report_to="none",
    use_cpu=True,
    bf16=False,
)
Trainer = {"gcpo": GCPOTrainer, "dgpo": DGPOTrainer}[arguments.credit]
trainer = Trainer(
    model=embedded_model_path(),
    reward_funcs=correct_answer,
    args=args,
    train_dataset=make_dataset(1000),
)
trainer.train()
