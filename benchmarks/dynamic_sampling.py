"""Measures what dynamic sampling costs and gains: updates, generated tokens and time until the policy reaches a reward.

    OMP_NUM_THREADS=1 python benchmarks/dynamic_sampling.py [--seeds N] [--max_steps N] [--targets R ...] [--credit JSON]

Trains the embedded model on sums of three numbers, with 8 prompts of 8 completions per update, with and without dynamic
sampling (range strictly between 0 and 1) from the same seeds. The reward is the mean over all drawn prompts in the last
ten updates, which both runs have. (TRL's own covers only the groups that were kept, and so is biased.) Prints one row
per seed and target, and means over the seeds. `-` means that a run did not reach the target.
"""

import argparse
import json
import statistics
import tempfile
import time
import warnings

from transformers import PrinterCallback, TrainerCallback

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import correct_answer, make_dataset


WINDOW = 10  # updates


class UntilReward(TrainerCallback):
    """Records when each target is reached, and stops training at the last one."""

    def __init__(self, targets: list[float]):
        self.targets, self.reached = sorted(targets), {}
        self.rewards, self.tokens, self.start = [], 0, None

    def on_train_begin(self, args, state, control, **kwargs):
        self.start = time.perf_counter()

    def on_log(self, args, state, control, logs=None, **kwargs):
        if "reward" not in logs:
            return
        self.rewards.append(logs.get("dynamic_sampling/drawn_reward", logs["reward"]))
        if len(self.rewards) < WINDOW:
            return
        mean = statistics.mean(self.rewards[-WINDOW:])
        for target in self.targets:
            if mean >= target and target not in self.reached:
                self.reached[target] = state.global_step, self.tokens, time.perf_counter() - self.start
        control.should_training_stop = len(self.reached) == len(self.targets)


def run(dynamic: bool, seed: int, args: argparse.Namespace) -> UntilReward:
    until = UntilReward(args.targets)

    def reward(completions, completion_ids, **kwargs):
        until.tokens += sum(map(len, completion_ids))
        return correct_answer(completions=completions, **kwargs)

    with tempfile.TemporaryDirectory() as folder:
        trainer = CreditGRPOTrainer(
            model=embedded_model_path(),
            reward_funcs=reward,
            args=CreditGRPOConfig(
                output_dir=folder,
                credit=args.credit,
                dynamic_sampling=dynamic,
                max_steps=args.max_steps,
                learning_rate=5e-5,
                lr_scheduler_type="constant",
                per_device_train_batch_size=64,
                num_generations=8,
                max_completion_length=40,
                epsilon_high=0.28,
                use_cpu=True,
                bf16=False,
                gradient_checkpointing=False,
                logging_steps=1,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                log_level="error",
                seed=seed,
            ),
            train_dataset=make_dataset(4000, seed=seed),
            callbacks=[until],
        )
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return until


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--max_steps", type=int, default=200)
    parser.add_argument("--targets", type=float, nargs="+", default=[0.85, 0.9, 0.95])
    parser.add_argument("--credit", default="uniform")
    args = parser.parse_args()
    args.credit = json.loads(args.credit) if args.credit.startswith("{") else args.credit
    warnings.simplefilter("ignore")

    ratios: dict[float, list[tuple[float, ...]]] = {target: [] for target in args.targets}
    print("| seed | reward | updates | with | generated tokens | with | seconds | with |")
    print("|---|---|---|---|---|---|---|---|", flush=True)
    for seed in range(args.seeds):
        without, ours = run(False, seed, args), run(True, seed, args)
        for target in args.targets:
            pair = without.reached.get(target), ours.reached.get(target)
            cells = [
                f"{x:,.0f}" if x is not None else "-"
                for a in zip(*(p or (None,) * 3 for p in pair), strict=True)
                for x in a
            ]
            print(f"| {seed} | {target} | {' | '.join(cells)} |", flush=True)
            if all(pair):
                ratios[target].append(tuple(b / a for a, b in zip(*pair, strict=True)))
    for target, found in ratios.items():
        if found:
            means = [f"{statistics.mean(x):.2f} ({min(x):.2f} to {max(x):.2f})" for x in zip(*found, strict=True)]
            print(f"reward {target}, with / without over {len(found)} seeds: updates {means[0]}, tokens {means[1]}, "
                  f"time {means[2]}")  # fmt: skip


if __name__ == "__main__":
    main()
