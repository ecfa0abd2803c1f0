"""Trains with `vine` as one of several processes and writes what each process knew of values."""

import json
import math
import sys
from pathlib import Path

import torch
from accelerate.state import PartialState
from helpers import config, prompts
from worker import calm_reward

from trl_credit import CreditGRPOTrainer, Vine
from trl_credit.trainer import grpo


def main():
    job = json.loads(Path(sys.argv[1]).read_text())
    torch.set_num_threads(1)
    output, seen = Path(job["output_dir"]), []

    class Watched(Vine):
        def rollout_stage(self, rollout):
            (found,) = rollout.values.values()
            seen.append(
                {
                    "groups": rollout.groups.tolist(),
                    "rewards": rollout.rewards.tolist(),
                    "completions": [
                        ids[mask].tolist() for ids, mask in zip(rollout.token_ids, rollout.mask, strict=True)
                    ],
                    "segments": [row[mask].tolist() for row, mask in zip(found.segments, rollout.mask, strict=True)],
                    "values": [[None if math.isnan(v) else v for v in row] for row in found.values.tolist()],
                }
            )
            return super().rollout_stage(rollout)

    grpo.build_credit = lambda credit: Watched(**{k: v for k, v in credit.items() if k != "method"})
    trainer = CreditGRPOTrainer(
        model=job["models"]["tiny"],
        reward_funcs=calm_reward,
        args=config(output, **job["cases"]["case"]),
        train_dataset=prompts(),
    )
    trainer.train()
    log = [{k: v for k, v in entry.items() if "seconds" not in k} for entry in trainer.state.log_history]
    result = {"seen": seen, "log": log, "sum": sum(p.double().abs().sum().item() for p in trainer.model.parameters())}
    (output / f"{trainer.accelerator.process_index}.json").write_text(json.dumps(result))
    PartialState().wait_for_everyone()
    PartialState().destroy_process_group()  # else gloo's threads may abort the process as it ends


if __name__ == "__main__":
    main()
