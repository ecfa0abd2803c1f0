"""Trains one case as one of several processes and writes the groups of this process's optimizer steps."""

import json
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from helpers import config, fixed_rollout, place_reward, prompts

from trl_credit import CreditGRPOTrainer
from trl_credit.batching import GROUPS


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    output = Path(job["output_dir"])
    trainer = CreditGRPOTrainer(
        model=job["models"]["tiny"],
        reward_funcs=place_reward,
        rollout_func=fixed_rollout,
        args=config(output, **job["cases"]["case"]),
        train_dataset=prompts(),
    )
    steps = []
    trainer.credit_observers.append(lambda batch, result: steps.append(batch[GROUPS].tolist()))
    trainer.train()
    (output / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(steps))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()  # else gloo's threads may abort the process as it ends


if __name__ == "__main__":
    main()
