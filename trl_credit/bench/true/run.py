"""Samples groups and values, scores the methods' credit against them, and writes the results."""

import json
import math
import random
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ..._util.files import write_atomically
from ..._util.text import redact
from ...evaluation.backends.base import SamplingSettings
from ...evaluation.config import EvalConfig
from ...evaluation.run import make_backend
from ...inspection.run import build_scorer, read_rows
from ...inspection.scoring import CreditScorer
from ...model_files import LocalModel
from ...report.page import clean
from ...toy.arithmetic import written_solution
from ...values.bookkeeping import problem_of
from ...values.store import CERTAIN, MISTAKE, REWARD, SAMPLED, Sample, SampleValues, ValueFolder, read_values
from ..baselines import is_trivial
from ..groups import Group, score_groups
from .config import KEPT, TrueConfig
from .gradients import NAMES, TRUE, Tempered, group_sketches, statistics_of, token_logps
from .sampling import Progress, Sampler, can_keep_books
from .scores import SCORES, Truth, compare, interval_of, prompt_sums, resampled, scores_of


# Continuations that are rewarded and written at once
CHUNK = 2048


def run(config: TrueConfig, progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
    """Does what the settings ask for, writes the files and returns the contents of bench_true.json.

    Raises:
        ValueError: A method, model, data or setting cannot be used.
        RunFolderError: The folder holds other samples, is in use, or cannot be written.
        BackendError: The backend cannot continue.
    """
    if config.values is not None:
        scorer, samples, values, about = _scored_again(config)
    else:
        scorer, samples, values, about = _sampled(config, progress)
    rows = [(sample, own) for sample, own in zip(samples, values, strict=True) if math.isfinite(sample.advantage)]
    if not rows:
        raise ValueError("No completion has a reward, so there is nothing to compare with.")
    seen, others = ([row for row in rows if (row[0].index < config.num_generations) == side] for side in (True, False))
    results = _results(config, scorer, seen, others, progress)
    results["settings"] |= about["settings"] | {"model": config.model}
    results["samples"]["completions_without_reward"] = len(samples) - len(rows)
    results["notes"] = about["notes"] + results["notes"]
    results = clean(results)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    from .report import write_markdown

    write_atomically(folder / "bench_true.json", [json.dumps(results, indent=2, allow_nan=False) + "\n"])
    write_markdown(results, folder / "bench_true.md")
    return results


def _sampled(config: TrueConfig, progress: Progress):
    """Samples what the folder does not have yet."""
    examples, rewards = read_rows(config)
    books = can_keep_books(rewards, examples)
    if books:  # what the data would say of a solution, for the methods that read one
        examples = [example | {"solution": _solution(example["prompt"])} for example in examples]
    config.columns = tuple(examples[0]) if examples else ()
    files = LocalModel.find(config.model, trust_remote_code=bool(config.trust_remote_code))
    backend = make_backend(_eval_config(config))
    scorer = build_scorer(config, rewards, per_device_train_batch_size=config.num_generations)
    if backend.name == "transformers":
        backend.dtype, backend.model, backend.batch_size = config.dtype, scorer.model, config.batch_size
    sampling = SamplingSettings(temperature=config.temperature, max_tokens=config.max_completion_length)
    folder = ValueFolder(Path(config.output_dir))
    settings = {name: getattr(config, name) for name in KEPT} | {
        name: getattr(config, name)
        for name in (
            *("dataset_name", "generated_dataset_config", "reward_funcs", "num_prompts", "num_generations", "every"),
            *("least", "most", "stderr", "certain", "gradients"),
        )
    }
    settings |= {"bookkeeping": config.bookkeeping if books else "none", "backend": backend.name}
    about = clean({"settings": settings, "fingerprint": files.fingerprint(), "columns": config.columns, "notes": []})
    try:
        chunk = max(CHUNK, config.batch_size)
        sampler = Sampler(backend, sampling, scorer, folder, examples, config.seed, chunk, progress=progress)
        identity = {
            "backend": {"name": backend.name, **redact(backend.identity())},
            "sampling": sampler.sampling.as_dict(),
            "chat_template_kwargs": config.chat_template_kwargs or {},
            "rewards": [str(spec) for spec in config.reward_funcs],
            "reward_weights": config.reward_weights,
            "seed": config.seed,
        }
        folder.open(identity, about)
        # As many again for the true gradient, which must not be of the completions that the methods see
        samples = sampler.groups(config.num_generations * (1 + config.gradients), config.num_generations)
        policy = Tempered(scorer.model, config.temperature)
        values = sampler.values(
            samples,
            token_logps(policy, [(s.prompt_ids, s.token_ids) for s in samples], scorer.tokenizer.pad_token_id),
            every=config.every,
            certain=config.certain,
            bookkeeping=settings["bookkeeping"],
            least=config.least,
            most=config.most,
            stderr=config.stderr,
        )
        about["notes"] = backend.notes()
        folder.finish(samples, values, about)
    finally:
        folder.close()
        backend.close()
    return scorer, samples, values, about


def _scored_again(config: TrueConfig):
    """Reads samples and values of an earlier run."""
    samples, values, about = read_values(Path(config.values))
    files = LocalModel.find(config.model, trust_remote_code=bool(config.trust_remote_code))
    if files.fingerprint() != about["fingerprint"]:
        raise ValueError(
            f"`values`: the completions in {config.values!r} are those of other weights than `model` "
            f"({config.model!r}), and values are those of the policy that sampled them."
        )
    config.columns = tuple(about["columns"])
    config.num_generations = about["settings"]["num_generations"]
    if config.gradients and not about["settings"]["gradients"]:
        raise ValueError(
            f"`gradients`: {config.values!r} has no other completions for the true gradient, as it was made without "
            "gradients. Set `--no_gradients` again."
        )
    scorer = build_scorer(config, [], per_device_train_batch_size=config.num_generations)
    return scorer, samples, values, about


def _eval_config(config: TrueConfig) -> EvalConfig:
    """The settings that choose a backend."""
    served = config.base_url is not None or config.backend == "server"
    local: dict[str, Any] = {"trust_remote_code": bool(config.trust_remote_code)}
    if config.dtype is not None:
        local["dtype"] = config.dtype
    return EvalConfig(
        model=(config.served_model or config.model) if served else config.model,
        backend=config.backend,
        **({"base_url": config.base_url} if served else local),
    )


def _solution(prompt: str) -> str:
    problem = problem_of(prompt)
    return written_solution(list(problem.terms), random.Random(prompt), style=problem.style)


def _groups(samples: Sequence[Sample]) -> list[list[int]]:
    """Places of the completions of each prompt."""
    places: dict[int, list[int]] = {}
    for i, sample in enumerate(samples):
        places.setdefault(sample.prompt, []).append(i)
    return list(places.values())


def _group(samples: Sequence[Sample]) -> Group:
    first = samples[0]
    return Group(
        prompt=first.example["prompt"],
        prompt_ids=list(first.prompt_ids),
        completions=[list(sample.token_ids) for sample in samples],
        rewards=torch.tensor([sample.reward for sample in samples]),
        example=first.example,
    )


def _results(
    config: TrueConfig,
    scorer: CreditScorer,
    seen: Sequence[tuple[Sample, SampleValues]],
    others: Sequence[tuple[Sample, SampleValues]],
    progress: Progress,
) -> dict[str, Any]:
    """The scores of the completions that the methods see; `others` are for the true gradient."""
    samples, values = [sample for sample, _ in seen], [own for _, own in seen]
    groups = _groups(samples)
    records: list[Any] = [None] * len(samples)
    progress("completions scored", 0, len(samples))
    scored = score_groups(scorer, [_group([samples[i] for i in places]) for places in groups])
    for places, own in zip(groups, scored, strict=True):
        for i, record in zip(places, own, strict=True):
            records[i] = record
    numbers = {i: number for number, places in enumerate(groups) for i in places}
    labels = [label for label in scorer.methods if all(label in record.token_advantages for record in records)]
    trivial = [label for label in labels if is_trivial(scorer.methods[label])]
    whole = [own.advantages() for own in values]
    halves = [own.half_advantages() for own in values]
    known = [
        record.mask & np.isfinite(a) & np.isfinite(h).all(-1)
        for record, a, h in zip(records, whole, halves, strict=True)
    ]
    truths = [Truth(numbers[i], a[k], h[k]) for i, (a, h, k) in enumerate(zip(whole, halves, known, strict=True))]
    weights = resampled(len(groups), config.resamples, config.seed)
    sums = {
        label: prompt_sums(
            [record.token_advantages[label][k] for record, k in zip(records, known, strict=True)], truths, len(groups)
        )
        for label in labels
    }
    statistics = {label: (lambda counts, own=own: scores_of(counts @ own)) for label, own in sums.items()}
    once, again = (scores_of(counts @ sums["uniform"]) for counts in (np.ones(len(groups)), weights))
    results: dict[str, Any] = {
        "settings": {"methods": list(labels), "resamples": config.resamples},
        "methods": {label: scorer.methods[label].to_dict() for label in labels},
        "baselines": trivial,
        "uniform_in_effect": {
            label: advice for label, advice in scorer.advice.items() if not is_trivial(scorer.methods[label])
        },
        "samples": _described(samples, values, groups),
        "truth": {name: interval_of(float(once[name]), again[name]) for name in _OF_TRUTH},
        "scores": compare(statistics, SCORES, weights),
        "notes": _notes(config, scorer, known, records),
    }
    if config.gradients:
        pairs = _paired(groups, samples, others)
        credit = {
            label: [
                [np.where(records[i].mask, np.nan_to_num(records[i].token_advantages[label]), 0.0) for i in groups[j]]
                for j, _ in pairs
            ]
            for label in labels
        }
        sketches = group_sketches(
            Tempered(scorer.model, config.temperature),
            [_group([samples[i] for i in groups[j]]) for j, _ in pairs],
            credit,
            [[np.where(records[i].mask[:, None], _known(values[i]), 0.0) for i in groups[j]] for j, _ in pairs],
            [_group([sample for sample, _ in own]) for _, own in pairs],
            [[_known(valued) for _, valued in own] for _, own in pairs],
            scorer.tokenizer.pad_token_id,
            config.sketch,
            progress,
        )
        counts = weights if len(pairs) == len(groups) else resampled(len(pairs), config.resamples, config.seed)
        results["gradients"] = {
            "batch": config.batch,
            "completions": config.batch * config.num_generations,
            "sketch": config.sketch,
            "methods": compare(statistics_of(sketches, config.batch), NAMES, counts, untested=(TRUE,)),
        }
    results["sentences"] = _sentences(results)
    return results


_OF_TRUTH = ("reliability", "within_reliability", "best")


def _known(values: SampleValues) -> np.ndarray:
    """(T, 2) true advantages from either half, 0 where there is none."""
    return np.nan_to_num(values.half_advantages())


def _paired(groups, samples, others) -> list[tuple[int, list[tuple[Sample, SampleValues]]]]:
    """Groups that have other completions of their prompt, with those."""
    found: dict[int, list] = {}
    for row in others:
        found.setdefault(row[0].prompt, []).append(row)
    pairs = [
        (j, found[samples[places[0]].prompt]) for j, places in enumerate(groups) if samples[places[0]].prompt in found
    ]
    if not pairs:
        raise ValueError("No prompt has two groups with rewards, so there are no gradients: set `--no_gradients`.")
    return pairs


def _described(samples: Sequence[Sample], values: Sequence[SampleValues], groups: Sequence[list[int]]) -> dict:
    """What was sampled."""
    rewards = np.array([sample.reward for sample in samples])
    sources = [source for own in values for source in own.source]
    estimates: dict[tuple, tuple[float, int]] = {}
    for sample, own in zip(samples, values, strict=True):
        for tokens, error, count, source in zip(own.tokens, own.stderr, own.count, own.source, strict=True):
            if source == SAMPLED:
                estimates[sample.prompt, sample.token_ids[:tokens]] = float(error), int(count)
    errors = [error for error, _ in estimates.values()]
    # The rewards' mean is V(prompt)'s, but for chance
    surprise = np.array([np.mean([samples[i].reward - values[i].mean[0] for i in places]) for places in groups])
    surprise = surprise[np.isfinite(surprise)]
    return {
        "prompts": len(groups),
        "completions": len(samples),
        "mean_tokens": float(np.mean([len(sample.token_ids) for sample in samples])),
        "mean_reward": float(rewards.mean()),
        "mixed_groups": sum(len(set(rewards[places])) > 1 for places in groups),
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


def _notes(config, scorer, known, records) -> list[str]:
    notes = []
    if config.methods is None and config._credit is None:
        notes += [f"No {name}: it {reason}." for name, reason in config.served[1].items()]
    for label, method in scorer.methods.items():
        if getattr(method, "reference", "") is None:
            notes.append(
                f"{label}: without a `reference`, the policy is compared with itself, so it is uniform in effect."
            )
    lost = sum(int((record.mask & ~k).sum()) for record, k in zip(records, known, strict=True))
    if lost:
        notes.append(f"{lost} tokens have no true advantage, as no continuation had a reward: they are left out.")
    return notes


def _sentences(results: Mapping[str, Any]) -> list[str]:
    samples, truth = results["samples"], results["truth"]
    sentences = []
    if samples["mixed_groups"] < samples["prompts"]:
        sentences.append(
            f"{samples['prompts'] - samples['mixed_groups']} of {samples['prompts']} groups have equal rewards: GRPO learns "
            "nothing from them, with any of these methods."
        )
    if not truth["reliability"]["mean"] > 0.5:
        sentences.append(
            "More than half of the estimated true advantages' variance is error. The scores are corrected for it, but "
            "uncertain: lower `stderr` and raise `most`."
        )
    if "gradients" not in results:
        return sentences
    gradients = results["gradients"]
    rows = gradients["methods"]
    true, uniform = rows[TRUE]["cosine"], rows["uniform"]["cosine"]
    what = f"a batch of {gradients['batch']} groups ({gradients['completions']} completions)"
    gap = true["difference"]
    sentences.append(
        f"Headroom: with the true advantages, the gradient of {what} has a cosine of {_told(true)} with the true gradient "
        f"of the same prompts; with uniform credit {_told(uniform)}. The difference is {_told(gap)}"
        + ("." if gap["low"] > 0 else ", so perfect credit may buy nothing here.")
    )
    tested = {label: row["cosine"] for label, row in rows.items() if "p_holm" in row["cosine"]}
    better = [k for k, row in tested.items() if row["p_holm"] < 0.05 and row["difference"]["mean"] > 0]
    worse = [k for k, row in tested.items() if row["p_holm"] < 0.05 and row["difference"]["mean"] < 0]
    for words, found in (("a larger", better), ("a smaller", worse)):
        listed = ", ".join(f"{k} ({_told(tested[k])})" for k in found) or "none"
        sentences.append(f"Methods with {words} cosine than uniform (p < 0.05 after Holm): {listed}.")
    return sentences


def _told(entry: Mapping[str, float]) -> str:
    """A value with its interval."""
    mean, low, high = ("-" if math.isnan(entry[k]) else f"{entry[k]:.3f}" for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"
