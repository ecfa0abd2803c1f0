"""Measures what token credit costs: runs TRL's GRPOTrainer and this package's, interleaved, on the same completions.

    python benchmarks/step_cost.py MODEL                   # all advantages non-zero, update only
    python benchmarks/step_cost.py MODEL --generate        # the whole step
    python benchmarks/step_cost.py MODEL --realistic       # half the groups without variance, uneven lengths

MODEL is a path or hub id (`python examples/convert_smollm2.py DIR` makes SmolLM2-135M-Instruct). Each round runs one
optimizer step of every variant, in a different order. Prints the ratios of the fastest steps, which are least affected
by other load on the machine; the median and range of the ratios within a round; and, if all variants' losses are the
same work (no savings), the ratio with a common loss: the fastest of any variant, plus each variant's fastest rollout
and credit. TRL computes its reference's log-probs in the rollout, so the column `rollout` includes the cost of its KL
penalty. The column `peak MB` is the most memory that a step took above what all variants held before it (on a CPU,
Linux only).
"""

import argparse
import copy
import random
import statistics
import sys
import tempfile
import time
from collections import defaultdict

import torch
from compare_distributions import peak, reset_peak
from datasets import Dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import GRPOConfig, GRPOTrainer

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer


GROUP = 8
PHASES = ("rollout", "credit", "loss", "total")
SAVE_NOTHING = {"skip_zero_advantage": False, "trim_padding": False}
SAVE_ALL = {"skip_zero_advantage": True, "trim_padding": True}


def parse_arguments(argv=None):
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("model", help="path or hub id; `python examples/convert_smollm2.py DIR` makes one")
    parser.add_argument("--rounds", type=int, default=5, help="steps of each variant, after one that warms up")
    parser.add_argument("--generate", action="store_true", help="sample completions with the model")
    parser.add_argument("--realistic", action="store_true", help="64 uneven completions, half without an advantage")
    parser.add_argument("--prompt-tokens", type=int, default=60)
    parser.add_argument("--note-tokens", type=int, default=15, help="what the negative prompt adds")
    parser.add_argument("--completion-tokens", type=int, default=128)
    parser.add_argument(
        "--variants",
        nargs="+",
        help="trl, trl_kl, or names of credit methods; by default trl, trl_kl, uniform, gcpo, dgpo",
    )
    parser.add_argument("--bf16", action="store_true")
    return parser.parse_args(argv)


def text_of(tokenizer, tokens, rng):
    """A random text of at most `tokens` tokens."""
    ids = [rng.randrange(1000, 5000) for _ in range(4 * tokens)]
    while len(tokenizer(tokenizer.decode(ids))["input_ids"]) > tokens:
        ids.pop()
    return tokenizer.decode(ids)


class Variant:
    def __init__(self, name, arguments, model, tokenizer, data, lengths, rewards):
        self.name, self.seconds, self.megabytes = name, defaultdict(list), []
        self._lengths, self._rewards, self._generate = lengths, rewards, arguments.generate
        rng = random.Random(0)
        note = text_of(tokenizer, arguments.note_tokens, rng)
        credit = {
            "gcpo": {"method": "gcpo", "negative_prompt": "{prompt} " + note},
            "rlsd": {"method": "rlsd", "template": "{prompt} {answer}"},
            "rlcsd": {"method": "rlcsd", "template": "{prompt} {solution}"},
            "teacher": {"method": "teacher", "model": arguments.model},
            "shuffled": {"method": "shuffled", "of": "random"},
        }.get(name, name)
        data = data.add_column("solution", [note] * len(data))
        self._accumulation = len(lengths) // GROUP
        settings = {
            "output_dir": tempfile.mkdtemp(),
            "per_device_train_batch_size": GROUP,
            "gradient_accumulation_steps": self._accumulation,
            "num_generations": GROUP,
            "max_completion_length": max(lengths),
            "beta": 0.001 if name == "trl_kl" else 0.0,
            "bf16": arguments.bf16,
            "use_cpu": not torch.accelerator.is_available(),  # where bfloat16 must be asked for so
            "gradient_checkpointing": False,
            "report_to": "none",
            "save_strategy": "no",
        }
        if name.startswith("trl"):
            trainer_class, config = GRPOTrainer, GRPOConfig(**settings)
        else:
            savings = SAVE_ALL if arguments.realistic else SAVE_NOTHING
            trainer_class, config = CreditGRPOTrainer, CreditGRPOConfig(**settings, credit=credit, **savings)
        self.trainer = trainer_class(
            model=copy.deepcopy(model),  # the KL penalty's reference is then built in its dtype
            reward_funcs=self._reward,
            rollout_func=None if arguments.generate else self._rollout,
            args=config,
            train_dataset=data,
            processing_class=tokenizer,
        )
        self.trainer.create_optimizer()
        self.trainer.model.train()
        self.trainer.current_gradient_accumulation_steps = self._accumulation
        # `credit` is the time of everything that TRL's trainer does not do
        self._time("rollout", self.trainer, "_generate_and_score_completions")
        if hasattr(self.trainer, "credit_pass"):
            self.trainer._completions_seen = torch.zeros(3, device=self.trainer.accelerator.device)  # as `train()` does
            for method in ("_planned", "_unshard_output_head", "_log_credit", "_weight_metrics"):
                self._time("credit", self.trainer, method)
            for method in ("start", "finish"):
                self._time("credit", self.trainer.credit_pass, method)
        self._rows = [row for row in data.to_list() for _ in range(GROUP)]

    def _time(self, phase, owner, method):
        original = getattr(owner, method)

        def timed(*args, **kwargs):
            started = mark()
            result = original(*args, **kwargs)
            self._marks.append((phase, started, mark()))
            return result

        setattr(owner, method, timed)

    def _reward(self, completions, **kwargs):
        return self._rewards

    def _rollout(self, prompts, trainer):
        rng = random.Random(1)
        ids = [trainer.processing_class(prompt)["input_ids"] for prompt in prompts]
        completions = [[rng.randrange(1000, 5000) for _ in range(length)] for length in self._lengths]
        return {"prompt_ids": ids, "completion_ids": completions, "logprobs": None}

    def step(self):
        trainer, self._marks, phases = self.trainer, [], defaultdict(float)
        torch.manual_seed(0)
        held = reset_peak(trainer.accelerator.device)
        started = now()
        for micro_batch in range(self._accumulation):
            trainer.accelerator.gradient_state._set_sync_gradients(micro_batch == self._accumulation - 1)
            trainer.training_step(trainer.model, self._rows, None)
        trainer.optimizer.step()
        trainer.optimizer.zero_grad()
        total = now() - started
        for phase, start, end in self._marks:
            phases[phase] += start.elapsed_time(end) / 1000 if torch.cuda.is_available() else end - start
        phases["loss"] = total - sum(phases.values())
        self.megabytes.append(peak(trainer.accelerator.device) - held)
        for phase, seconds in {**phases, "total": total}.items():
            self.seconds[phase].append(seconds)

    def apart(self):
        """Sum of the fastest times in seconds of all phases except the loss."""
        return sum(min(self.seconds[phase][1:]) for phase in ("rollout", "credit") if phase in self.seconds)


def mark():
    """A point in the work of a GPU, or in time. Unlike [`now`], it does not wait for the GPU."""
    if not torch.cuda.is_available():
        return time.perf_counter()
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event


def now():
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def make_variants(arguments):
    """The variants, all on the same completions."""
    rng = random.Random(0)
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    groups = 8 if arguments.realistic else 1
    prompts = [text_of(tokenizer, arguments.prompt_tokens, rng) for _ in range(groups)]
    data = Dataset.from_list([{"prompt": prompt} for prompt in prompts])
    lengths = [arguments.completion_tokens] * (groups * GROUP)
    rewards = [float(i % 2) for i in range(groups * GROUP)]
    if arguments.realistic:
        # Mean 64, maximum 256, with a long tail
        lengths = [min(256, max(8, int(rng.lognormvariate(3.8, 0.8)))) for _ in lengths]
        lengths[rng.randrange(len(lengths))] = 256
        lengths = [max(1, round(n * 64 * len(lengths) / sum(lengths))) if n < 256 else n for n in lengths]
        rewards = [float(i % 2) if (i // GROUP) % 2 else 1.0 for i in range(len(rewards))]
    model = AutoModelForCausalLM.from_pretrained(
        arguments.model, dtype=torch.bfloat16 if arguments.bf16 else torch.float32
    )
    names = arguments.variants or ["trl", "trl_kl", "uniform", "gcpo", "dgpo"]
    variants = [Variant(name, arguments, model, tokenizer, data, lengths, rewards) for name in names]
    print(f"completions: {len(lengths)}, mean {statistics.mean(lengths):.0f} tokens, longest {max(lengths)}")
    return variants


def run_in_turn(variants, rounds):
    """Runs a step of every variant in each round, in another order. The round before the first warms up."""
    for turn in range(rounds + 1):
        for variant in variants[turn % len(variants) :] + variants[: turn % len(variants)]:
            variant.step()
            print(f"{variant.name} {variant.seconds['total'][-1]:.1f} s", end="  ", file=sys.stderr, flush=True)


def summary(variant):
    """Seconds of the fastest step, by phase, and its peak memory."""
    fastest = {phase: min(variant.seconds.get(phase, [0.0])[1:] or [0.0]) for phase in PHASES}
    return fastest | {"peak_mb": statistics.median(variant.megabytes[1:])}


def ratios_to(base, variants, same_loss=True):
    """Each other variant's time relative to `base`: of the fastest steps, the median and range within rounds, and, if the
    loss is the same work for all, with the fastest loss of any for all."""
    loss = min(seconds for variant in variants for seconds in variant.seconds["loss"][1:])
    found = {}
    for variant in variants:
        if variant is not base:
            rounds = [a / b for a, b in zip(variant.seconds["total"][1:], base.seconds["total"][1:], strict=True)]
            found[variant.name] = {
                "fastest": min(variant.seconds["total"][1:]) / min(base.seconds["total"][1:]),
                "median": statistics.median(rounds),
                "range": [min(rounds), max(rounds)],
            }
            if same_loss:
                found[variant.name]["one_loss"] = (loss + variant.apart()) / (loss + base.apart())
    return found


def main():
    arguments = parse_arguments()
    variants = make_variants(arguments)
    run_in_turn(variants, arguments.rounds)
    print(f"{'seconds (fastest)':18}" + "".join(f"{phase:>10}" for phase in PHASES) + f"{'peak MB':>10}")
    for variant in variants:
        found = summary(variant)
        print(f"{variant.name:18}" + "".join(f"{found[phase]:10.2f}" for phase in PHASES) + f"{found['peak_mb']:10.0f}")
    for base in (variant for variant in variants if variant.name.startswith("trl")):
        for name, found in ratios_to(base, variants, same_loss=not arguments.realistic).items():
            low, high = found["range"]
            print(
                f"{name} / {base.name}: fastest {found['fastest']:.3f}, median {found['median']:.3f} "
                f"({low:.3f} to {high:.3f})"
                + ("" if arguments.realistic else f", one loss for all {found['one_loss']:.3f}")
            )


if __name__ == "__main__":
    main()
