"""What the methods' credit on valued completions is worth: the contents of bench_true.json."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch

from ...inspection.scoring import CreditScorer
from ...records.record import CompletionCredit
from ...values.store import CERTAIN, MISTAKE, REWARD, SAMPLED, Sample, SampleValues
from ..baselines import is_trivial
from ..groups import Group, score_groups
from .config import TrueConfig
from .gradients import HALVES, NAMES, TRUE, Credited, Tempered, effective_prompts, group_sketches, statistics_of
from .sampling import Progress
from .scores import SCORES, Truth, compare, interval_of, left_out, prompt_sums, scores_of


_OF_TRUTH = ("reliability", "within_reliability", "best")


class Valued(NamedTuple):
    """A completion with a reward, and its values."""

    sample: Sample
    values: SampleValues


class _Scored(NamedTuple):
    """A completion with the credit of every method. `known` are the (T,) tokens in the loss with a true advantage."""

    sample: Sample
    values: SampleValues
    record: CompletionCredit
    known: np.ndarray


_Groups = dict[tuple[int, int], list[Any]]  # by number of the prompt, and 0 or 1, its first or second group


def results_of(config: TrueConfig, scorer: CreditScorer, rows: Sequence[Valued], progress: Progress) -> dict[str, Any]:
    """Scores completions.

    Args:
        config: The settings.
        scorer: Has the methods.
        rows: Completions with rewards. Those of a prompt are one group of `num_generations`, or two.
        progress: Called with what is made, how many are done, and of how many.
    """
    progress("completions scored", 0, len(rows))
    groups, uniform = _scored(scorer, _grouped(rows, config.num_generations), config.batch)
    scored = [one for group in groups.values() for one in group]
    prompts = {number: place for place, number in enumerate(dict.fromkeys(number for number, _ in groups))}
    labels = [label for label in scorer.methods if all(label in one.record.token_advantages for one in scored)]
    truths = [
        Truth(prompts[one.sample.prompt], one.values.advantages()[one.known], one.values.half_advantages()[one.known])
        for one in scored
    ]
    sums = {
        label: prompt_sums([one.record.token_advantages[label][one.known] for one in scored], truths, len(prompts))
        for label in labels
    }
    statistics = {label: (lambda counts, own=own: scores_of(counts @ own)) for label, own in sums.items()}
    once, without = (scores_of(counts @ sums["uniform"]) for counts in (np.ones(len(prompts)), left_out(len(prompts))))
    trivial = [label for label in labels if is_trivial(scorer.methods[label])]
    results: dict[str, Any] = {
        "settings": {"methods": list(labels)},
        "methods": {label: scorer.methods[label].to_dict() for label in labels},
        "baselines": trivial,
        "uniform_in_effect": {
            label: advice for label, advice in uniform.items() if not is_trivial(scorer.methods[label])
        },
        "samples": _described(groups, len(prompts)),
        "truth": {name: interval_of(float(once[name]), without[name]) for name in _OF_TRUTH},
        "scores": compare(statistics, SCORES, len(prompts)),
        "notes": _notes(config, scorer, scored),
    }
    if config.gradients:
        results["gradients"] = _gradients(config, scorer, groups, labels, progress)
    return results


def _grouped(rows: Sequence[Valued], size: int) -> _Groups:
    found: _Groups = {}
    for row in rows:
        found.setdefault((row.sample.prompt, int(row.sample.index >= size)), []).append(row)
    return found


def _group(rows: Sequence[Valued | _Scored]) -> Group:
    first = rows[0].sample
    return Group(
        prompt=first.example["prompt"],
        prompt_ids=list(first.prompt_ids),
        completions=[list(row.sample.token_ids) for row in rows],
        rewards=torch.tensor([row.sample.reward for row in rows]),
        example=first.example,
    )


def _scored(scorer: CreditScorer, groups: _Groups, batch: int) -> tuple[_Groups, dict[str, str]]:
    """Scores batches of groups, the first ones of prompts and the second ones apart: some methods compare all completions of
    a batch. Also returns what to change of the methods that were uniform in effect in every batch with unequal rewards."""
    records, advice = {}, []
    for side in sorted({side for _, side in groups}):
        keys = [key for key in groups if key[1] == side]
        for start in range(0, len(keys), batch):
            part = keys[start : start + batch]
            records |= zip(
                part, score_groups(scorer, [_group(groups[key]) for key in part], one_batch=True), strict=True
            )
            if any(len({row.sample.reward for row in groups[key]}) > 1 for key in part):
                advice.append(dict(scorer.advice))
    found = {
        key: [
            _Scored(*row, record, _known(row.values, record.mask))
            for row, record in zip(rows, records[key], strict=True)
        ]
        for key, rows in groups.items()
    }
    always = set.intersection(*map(set, advice)) if advice else set()
    return found, {label: advice[0][label] for label in scorer.methods if label in always}


def _known(values: SampleValues, mask: np.ndarray) -> np.ndarray:
    # A value is known if those of both halves are
    return mask & np.isfinite(values.half_advantages()).all(-1)


def _gradients(
    config: TrueConfig, scorer: CreditScorer, groups: _Groups, labels: Sequence[str], progress: Progress
) -> dict[str, Any]:
    numbers = dict.fromkeys(number for number, _ in groups)
    pairs = [
        tuple(_credited(groups[number, side], labels) for side in (0, 1))
        for number in numbers
        if (number, 0) in groups and (number, 1) in groups
    ]
    if not pairs:
        raise ValueError("No prompt has two groups with rewards, so there are no gradients: set `--no_gradients`.")
    policy = Tempered(scorer.model, config.temperature)
    sketches = group_sketches(policy, pairs, scorer.tokenizer.pad_token_id, config.sketch, progress)
    return {
        "batch": config.batch,
        "completions": config.batch * config.num_generations,
        "sketch": config.sketch,
        "prompts": len(pairs),
        "effective_prompts": effective_prompts(sketches),
        "methods": compare(statistics_of(sketches, config.batch), NAMES, len(pairs), untested=(TRUE,)),
    }


def _credited(rows: Sequence[_Scored], labels: Sequence[str]) -> Credited:
    """A group with the token advantages of the methods and the true ones, 0 where there is none."""

    def inside(one: _Scored, values: np.ndarray) -> np.ndarray:
        return np.where(one.record.mask, np.nan_to_num(values), 0.0)

    credit = {label: [inside(one, one.record.token_advantages[label]) for one in rows] for label in labels}
    for half, label in enumerate(HALVES):
        credit[label] = [inside(one, one.values.half_advantages()[:, half]) for one in rows]
    return Credited(_group(rows), credit)


def _described(groups: Mapping[tuple[int, int], Sequence[_Scored]], prompts: int) -> dict[str, Any]:
    """What was sampled."""
    scored = [one for group in groups.values() for one in group]
    sources = [source for one in scored for source in one.values.source]
    estimates: dict[tuple, tuple[float, int]] = {}
    for sample, own, *_ in scored:
        for tokens, error, count, source in zip(own.tokens, own.stderr, own.count, own.source, strict=True):
            if source == SAMPLED:
                estimates[sample.prompt, sample.token_ids[:tokens]] = float(error), int(count)
    errors = [error for error, _ in estimates.values()]
    # The rewards' mean is V(prompt)'s, but for chance
    by_prompt: dict[int, list[float]] = {}
    for one in scored:
        by_prompt.setdefault(one.sample.prompt, []).append(one.sample.reward - one.values.mean[0])
    surprise = np.array([np.mean(own) for own in by_prompt.values()])
    surprise = surprise[np.isfinite(surprise)]
    return {
        "prompts": prompts,
        "groups": len(groups),
        "completions": len(scored),
        "mean_tokens": float(np.mean([len(one.sample.token_ids) for one in scored])),
        "mean_reward": float(np.mean([one.sample.reward for one in scored])),
        "mixed_groups": sum(len({one.sample.reward for one in group}) > 1 for group in groups.values()),
        "prefixes": len(sources),
        "sources": {name: sources.count(name) for name in (SAMPLED, CERTAIN, REWARD, MISTAKE)},
        "estimates": len(estimates),
        "continuations": sum(count for _, count in estimates.values()),
        "mean_stderr": float(np.mean(errors)) if errors else math.nan,
        "reward_above_value": {
            "mean": float(surprise.mean()) if len(surprise) else math.nan,
            "stderr": float(surprise.std(ddof=1) / math.sqrt(len(surprise))) if len(surprise) > 1 else math.nan,
        },
    }


def _notes(config: TrueConfig, scorer: CreditScorer, scored: Sequence[_Scored]) -> list[str]:
    notes = []
    if config.takes_every_method():
        scored_names = {method.name for method in scorer.methods.values()}
        notes += [f"No {name}: it {reason}." for name, reason in config.served[1].items() if name not in scored_names]
    for label, method in scorer.methods.items():
        if getattr(method, "reference", "") is None:
            notes.append(
                f"{label}: without a `reference`, the policy is compared with itself, so it is uniform in effect."
            )
    lost = sum(int((one.record.mask & ~one.known).sum()) for one in scored)
    if lost:
        notes.append(f"{lost} tokens have no true advantage, as no continuation had a reward: they are left out.")
    return notes
