"""Runs CreditBench and writes `bench.json`, `bench.md` and the pictures."""

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
from annotated_types import Ge

from .._util.imports import is_dotted
from .._util.settings import DTYPES, AtLeast1, NonNegativeInt, Seed, Whole, check_fields, check_output_dir, one_of
from .._util.text import nearest
from ..inspection.scoring import CreditScorer
from ..methods import CreditMethod
from ..methods.compose import labelled
from ..methods.registry import METHODS, build_credit
from ..methods.uniform import Uniform
from ..model_files import LocalModel, embedded_model_path, resolve_model
from ..toy.arithmetic import make_dataset
from ..toy.build_model import is_embedded_tokenizer
from ..trainer.exactness import check_policy
from . import gradients as gradient_scores
from .baselines import BASELINES, baselines, is_trivial
from .groups import Group, blame, score_groups
from .own_errors import MAX_COMPLETION_TOKENS, sample_own_errors
from .scores import METRICS, compare_with_baselines, item_scores, position_profile, summary, together, verdict_sentence
from .served import reason_left_out, served_methods, with_later
from .sweeps import drifted_policies, sweep_methods, with_model, with_reference
from .tasks import OWN_ERRORS, RENDERINGS, Item, make_items, prompt_for, tokens_and_labels, variants


# Rows of the rollout stage's forwards
_ROWS = 64
Scores = dict[str, dict[str, dict[str, list[float]]]]  # by label, variant and metric: one value per item


@dataclass(frozen=True)
class BenchSettings:
    """Settings of a benchmark run.

    Args:
        model: Path or hub id. By default, the embedded model.
        reference: Path or hub id of the reference policy, for methods that need one and name none.
        methods: Names, dotted paths, or mappings. By default, every registered method that can be scored.
        tasks: Tasks or variants. By default, all.
        rendering: `compact` or `text`. By default, the one that fits the model's tokenizer.
        num_items: Items per variant. Fewer of the policy's own errors, if it makes too few.
        seed: Seed of items, samples and training.
        drift: Numbers of updates after which the embedded model is scored, ascending from 0. Unused for other models.
        drift_completions: Completions per update.
        groups: Groups whose gradients are compared. 0 skips gradients.
        target_groups: Number of other groups, from which the low-noise gradient is computed.
        dtype: Dtype for loading a model.
        output_dir: Folder for the results.
    """

    model: str | None = None
    reference: str | None = None
    methods: tuple[str, ...] | None = None
    tasks: tuple[str, ...] | None = None
    rendering: one_of(*RENDERINGS) | None = None
    num_items: Annotated[Whole, Ge(2)] = 200
    seed: Seed = 0
    drift: tuple[int, ...] = (0, 20, 80)
    drift_completions: AtLeast1 = 64
    groups: NonNegativeInt = 256
    target_groups: Annotated[Whole, Ge(2)] = 1024
    dtype: one_of(*DTYPES) = "float32"
    output_dir: Path = field(default_factory=lambda: Path("outputs/bench"))

    def __post_init__(self):
        check_fields(self)
        check_output_dir(self.output_dir)
        variants(None if self.tasks is None else list(self.tasks))


def build_methods(given: Sequence[str | Mapping[str, Any]], later: str | None = None) -> dict[str, CreditMethod]:
    """Builds the methods by label, baselines last.

    Args:
        given: Names, dotted paths, or mappings, also as text. Names of baselines are valid too.
        later: What to write for the model of a method that needs another one and names none.

    Raises:
        ValueError, TypeError: As in [`~trl_credit.build_credit`]; or a method that cannot be scored here.
    """
    known = [*METHODS, *BASELINES]
    built = []
    for method in given:
        if isinstance(method, str):
            if method in BASELINES:
                built.append(BASELINES[method]())
                continue
            if not is_dotted(method) and not method.lstrip().startswith(("{", "[")) and method not in known:
                raise ValueError(f"Unknown credit method {method!r}. {nearest(method, known)}")
            method = with_later(method, later)
        built.append(build_credit(method))
        check_policy(built[-1], "tokens")
        if reason := reason_left_out(built[-1]):
            raise ValueError(f"credit method {built[-1].name!r} {reason}. Leave it out.")
    own = labelled([method for method in built if method not in baselines().values()])
    trivial = baselines(own)
    clash = [label for label in own if label in trivial]
    for label in clash:  # the user's own class has a baseline's name
        method = own.pop(label)
        own[f"{type(method).__module__}.{label}"] = method
    return own | trivial


def load_tokenizer(model: str) -> Any:
    """Loads a model's tokenizer. Raises `ValueError` if it has none, or the model cannot be used."""
    tokenizer = LocalModel.find(model, adapter=False).tokenizer()
    # Without tokenizer files, some classes create a tokenizer with an empty vocabulary
    if "42" not in tokenizer.decode(tokenizer("42", add_special_tokens=False)["input_ids"]):
        raise ValueError(f"the model {model!r} has no tokenizer that can write numbers.")
    return tokenizer


@dataclass
class Scored:
    """Scores of one policy: methods by label, sweeps by (label, parameter, value)."""

    scores: Scores
    sweeps: dict[tuple[str, str, Any], dict[str, dict[str, list[float]]]]
    tasks: dict[str, dict[str, Any]]
    labels: dict[str, list[list[bool]]]


def planted_groups(
    items: Sequence[Item], encoded: Sequence[tuple], scorer: CreditScorer, rendering: str
) -> list[Group]:
    """The groups of planted errors: the item first, then its siblings."""
    tokenizer: Any = scorer.tokenizer

    def ids_of(item: Item, text: str) -> list[int]:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        return [*ids, tokenizer.eos_token_id] if item.finished and tokenizer.eos_token_id is not None else ids

    return _groups(
        [prompt_for(item, tokenizer, rendering) for item in items],
        [ids for ids, _ in encoded],
        [[(ids_of(item, text), float(right)) for text, right in item.siblings] for item in items],
        items,
        scorer,
    )


def _groups(
    prompts: list, first: list[list[int]], siblings: Sequence[Sequence[tuple[list[int], float]]], items: Sequence[Item],
    scorer: CreditScorer,
) -> list[Group]:  # fmt: skip
    """Groups of a wrong completion and its siblings with their rewards."""
    prompt_ids = scorer.trainer.tokenize_prompts(prompts)[0] if prompts else []
    return [
        Group(
            prompt,
            ids,
            [own, *(other for other, _ in others)],
            torch.tensor([0.0, *(reward for _, reward in others)]),
            item.columns,
        )
        for prompt, ids, own, others, item in zip(prompts, prompt_ids, first, siblings, items, strict=True)
    ]


def sampler_of(scorer: CreditScorer) -> CreditScorer:
    """A scorer of the same policy that only samples, without the forwards of credit methods."""
    return CreditScorer(
        scorer.model,
        {"uniform": Uniform()},
        processing_class=scorer.tokenizer,
        max_completion_length=scorer.trainer.max_completion_length,
    )


def score_policy(
    scorer: CreditScorer, names: Sequence[str], settings: BenchSettings, rendering: str, sweeps: Sequence[tuple] = ()
) -> Scored:
    """Scores all methods of the scorer on all variants. A label that is a key of `sweeps` as text is a sweep."""
    keys = {str(key): key for key in sweeps}
    result = Scored({}, {}, {}, {})
    negative = set()  # labels that do not only blame, so that there are no shares of the blame
    for name in names:
        sampled = {}
        if name in OWN_ERRORS:
            own_errors = sample_own_errors(sampler_of(scorer), name, settings.num_items, settings.seed)
            items, encoded = own_errors.items, own_errors.encoded
            sampled = {"completions": own_errors.counts, "written_siblings": own_errors.written}
            prompts = [item.prompt for item in items]
            groups = _groups(prompts, [ids for ids, _ in encoded], own_errors.siblings, items, scorer)
        else:
            items = make_items(name, settings.num_items, settings.seed, rendering)
            encoded = [tokens_and_labels(item, scorer.tokenizer) for item in items]
            groups = planted_groups(items, encoded, scorer, rendering)
        records = [row for (row,) in score_groups(scorer, groups, only=0)]
        labels = result.labels[name] = [row for _, row in encoded]
        result.tasks[name] = {
            "items": len(items),
            "mean_tokens": summary(len(row) for row in labels)["mean"],
            "base_rate": summary(np.mean(row) for row in labels)["mean"],
            "position_profile": summary(position_profile(labels)),
            **sampled,
        }
        for label in scorer.methods:
            blames = [blame(record, label) for record in records]
            own = [
                item_scores(values, row, record.mask)
                for values, row, record in zip(blames, labels, records, strict=True)
            ]
            values = {metric: [scores[metric] for scores in own] for metric in METRICS}
            if any((tokens < 0).any() for tokens in blames):
                negative.add(label)
            if label in keys:
                result.sweeps.setdefault(keys[label], {})[name] = values
            else:
                result.scores.setdefault(label, {})[name] = values
    for label in negative:
        for values in (result.sweeps[keys[label]] if label in keys else result.scores[label]).values():
            values |= {metric: [math.nan] * len(values[metric]) for metric in ("mass", "ratio")}
    return result


def _summaries(scores: Scores) -> dict:
    return {
        label: {
            name: {metric: summary(values) for metric, values in metrics.items()} for name, metrics in tasks.items()
        }
        for label, tasks in scores.items()
    }


def _verdicts(scores: Scores, methods: Mapping[str, CreditMethod]) -> dict[str, dict[str, dict]]:
    trivial = [label for label in scores if is_trivial(methods[label])]
    names = list(next(iter(scores.values())))
    return {
        label: {
            name: compare_with_baselines({key: scores[key][name] for key in [label, *trivial]}, label, trivial)
            for name in names
        }
        for label in scores
        if label not in trivial
    }


def run(settings: BenchSettings, progress: Callable[[str], None] = lambda message: None) -> dict[str, Any]:
    """Runs the benchmark, writes the files and returns the contents of `bench.json`.

    Raises:
        ValueError: A method, model or tokenizer cannot be used.
        OSError: The folder cannot be written.
    """
    names = variants(None if settings.tasks is None else list(settings.tasks))
    model = resolve_model(settings.model, "model") if settings.model else embedded_model_path()
    if settings.methods is not None:
        build_methods(settings.methods, later="later")  # report errors in them before loading anything
    tokenizer = load_tokenizer(model)
    rendering = settings.rendering or ("compact" if is_embedded_tokenizer(tokenizer) else "text")
    compact = rendering == "compact" and is_embedded_tokenizer(tokenizer)
    drifts = settings.drift if settings.model is None and settings.reference is None and compact else ()
    later = f"the policy after {max(drifts)} updates" if max(drifts, default=0) else None
    served, left_out = served_methods(later)
    methods = build_methods([*served.values()] if settings.methods is None else settings.methods, later)
    trivial = [label for label, method in methods.items() if is_trivial(method)]
    notes = [f"No {name}: it {reason}." for name, reason in left_out.items()] if settings.methods is None else []
    skipped = [name for name in names if name in OWN_ERRORS and rendering != "compact"]
    if skipped:
        names = [name for name in names if name not in skipped]
        reason = "the policy's own errors can be checked in the compact rendering only"
        if not names:
            raise ValueError(f"No task is left: {reason}.")
        notes.append(f"No {', '.join(skipped)}: {reason}.")
    settings.output_dir.mkdir(parents=True, exist_ok=True)

    policies = {0: {"path": model, "reward": None}}
    if drifts:
        if max(drifts):
            progress(f"Policies after {', '.join(map(str, drifts))} updates ...")
        policies = drifted_policies(
            model, drifts, settings.output_dir / "drift", settings.seed, settings.drift_completions
        )
    with_references = [label for label, method in methods.items() if hasattr(method, "reference")]
    unreferenced = [label for label in with_references if methods[label].reference is None]
    if unreferenced and settings.reference is None:
        notes.append(
            f"{', '.join(unreferenced)}: without a `reference`, the policy is compared with itself, so the distance is 0 "
            "and the weights are uniform, as at the first step of a training run. "
            + (
                "The scores of drifted policies compare with the initial model."
                if max(drifts, default=0)
                else "`--reference` names one."
            )
        )

    taught = [
        label for label, method in methods.items() if later is not None and getattr(method, "model", None) == later
    ]
    if taught:
        notes.append(f"{', '.join(taught)}: the other model is {later}. Of that policy itself there is nothing to say.")

    results: dict[str, Any] = {
        "settings": {
            key: value for key, value in asdict(settings).items() if key not in ("output_dir", "model", "tasks")
        }
        | {
            "model": settings.model or "trl_credit:quickstart",
            "methods": list(served) if settings.methods is None else list(settings.methods),
            "rendering": rendering,
            "variants": names,
        },
        "methods": {label: method.to_dict() for label, method in methods.items()},
        "baselines": trivial,
        "notes": notes,
    }
    sentences: list[str] = []
    last = max(policies)
    scorers: dict[int, CreditScorer] = {}
    drift: dict[str, Any] = {}
    for step, policy in policies.items():
        progress(f"Scores of the policy after {step} updates ..." if drifts else "Scores ...")
        reference = (model if step else None) if drifts else settings.reference
        own = {label: with_reference(method, reference) for label, method in methods.items()}
        if later is not None:
            # The last policy is its own later one: no method tells anything of it, and rounding must not seem to
            own = {
                label: Uniform()
                if label in taught and step == last
                else with_model(method, later, policies[last]["path"])
                for label, method in own.items()
            }
        nothing = [
            label for label, method in own.items() if _no_reference(method) or (label in taught and step == last)
        ]
        swept = sweep_methods({k: m for k, m in own.items() if not _no_reference(m)}) if step == last else {}
        scorer = CreditScorer(
            policy["path"],
            own | {str(key): method for key, method in swept.items()},
            dtype=settings.dtype,
            per_device_train_batch_size=_ROWS,
            **({"max_completion_length": MAX_COMPLETION_TOKENS} if rendering == "compact" else {}),
        )
        scored = score_policy(scorer, names, settings, rendering, list(swept))
        scorer.methods = own
        scorers[step] = scorer
        verdicts = _verdicts(scored.scores, methods)
        entry = {"scores": _summaries(scored.scores), "verdicts": verdicts}
        if step == min(policies):
            results |= {"tasks": scored.tasks, **entry}
        if drifts:
            drift[str(step)] = {"reward": policy["reward"], "tasks": scored.tasks, **entry}
        when = f"After {step} updates" if drifts and step else ""
        notes += _too_few_notes(scored.tasks, settings.num_items, when)
        said = []
        for label, verdict in verdicts.items():
            sentence = verdict_sentence(label, verdict, when)
            if label in nothing:
                why = "with itself for the other model" if label in taught else "without a reference"
                sentence = (
                    f"{when + ', ' if when else ''}{label}: uniform {why}, so there is nothing to say of it here."
                )
            said.append((label, sentence))
        sentences += together(said)
        if swept:
            results["sweeps"] = _sweep_results(scored, swept)
            results["swept_after"] = step
    if drifts:
        results["drift"] = drift
    sentences += _position_sentences(results)

    if settings.groups and not compact:
        notes.append("Gradients are compared on the embedded model's problems only, so there are none here.")
    elif settings.groups:
        step = sorted(scorers)[len(scorers) // 2]
        progress(f"Gradients of {settings.target_groups} + {settings.groups} groups ...")
        try:
            results["gradients"] = _gradients(scorers[step], settings) | {"after": step}
            sentences += _gradient_sentences(results["gradients"])
        except ValueError as error:
            notes.append(f"No gradients: {error}")
    results["sentences"] = sentences

    from .report import plot_all, write_markdown

    finite = _finite(results)
    (settings.output_dir / "bench.json").write_text(json.dumps(finite, indent=2) + "\n")
    pictures = plot_all(finite, settings.output_dir)
    write_markdown(finite, settings.output_dir / "bench.md", pictures)
    return finite


def _too_few_notes(tasks: Mapping[str, Mapping], num_items: int, when: str) -> list[str]:
    return [
        f"{when + ', ' if when else ''}{name} has {task['items'] or 'no'} items instead of {num_items}: of "
        f"{task['completions']['sampled']} completions of the policy, {task['completions']['usable']} are wrong by a single "
        "mistake, and one of a prompt is taken."
        for name, task in tasks.items()
        if "completions" in task and task["items"] < num_items
    ]


def _no_reference(method: CreditMethod) -> bool:
    return getattr(method, "reference", "") is None


def _sweep_results(scored: Scored, swept: Mapping[tuple, CreditMethod]) -> list[dict]:
    """One entry per parameter: its values, and for each variant the scores at each value."""
    entries: dict[tuple[str, str], dict] = {}
    for (label, parameter, value), tasks in ((key, scored.sweeps[key]) for key in swept):
        entry = entries.setdefault(
            (label, parameter), {"method": label, "parameter": parameter, "values": [], "scores": {}}
        )
        entry["values"].append(value)
        for name, metrics in tasks.items():
            row = {metric: summary(metrics[metric]) for metric in ("auroc", "ap", "mass", "ratio")}
            entry["scores"].setdefault(name, []).append(row)
    return list(entries.values())


def _position_sentences(results: dict) -> list[str]:
    told = [
        f"{name} ({label.removeprefix('position ')} tokens {score['mean']:.2f})"
        for name in results["tasks"]
        for label in ("position late", "position early")
        if label in results["scores"]
        and (score := results["scores"][label][name]["auroc"])["mean"] - 0.5 > max(0.05, 2 * score["stderr"])
    ]
    profile = ", ".join(
        f"{name} {task['position_profile']['mean']:.2f}"
        for name, task in results["tasks"].items()
        if task["position_profile"]["n"] > 1
    )
    return [
        f"Position alone is informative on {', '.join(told)}: compare with the position baselines there."
        if told
        else "Credit that is linear in the position scores at chance on every task.",
        f"A rule that has learned each task's places from its other items reaches an AUROC of: {profile}.",
    ]


def _gradients(scorer: CreditScorer, settings: BenchSettings) -> dict[str, Any]:
    model, tokenizer = scorer.model, scorer.tokenizer
    total = settings.target_groups + settings.groups
    problems = make_dataset(total, seed=settings.seed + 1_000_003)
    groups = gradient_scores.sample_groups(
        model, tokenizer, problems["prompt"][:], problems["answer"][:], seed=settings.seed
    )
    many, few = groups[: settings.target_groups], groups[settings.target_groups :]
    pad = tokenizer.pad_token_id
    target, halves = gradient_scores.uniform_gradient(model, many, pad)
    token_advantages = [
        {label: [record.token_advantages[label] for record in records] for label in scorer.methods}
        for records in score_groups(scorer, few)
    ]
    compared = gradient_scores.compare_gradients(model, few, token_advantages, target, pad)
    return {
        "groups": len(few),
        "target_groups": len(many),
        "completions_per_group": len(few[0].completions),
        "mixed_groups": sum(bool((g.advantages != 0).any()) for g in few),
        "accuracy": float(np.mean([float(g.rewards.mean()) for g in groups])),
        "cosine_of_target_halves": halves,
        "methods": compared,
    }


def _gradient_sentences(gradients: dict) -> list[str]:
    bias = (
        "Gradients of token credit may be biased estimates: the mean over more and more samples then goes to another "
        "vector than the policy gradient. `bias_cosine` is its cosine with the policy gradient: uniform's is 1 by "
        "definition, and low variance is no merit where it is low."
    )
    said = []
    for label, row in gradients["methods"].items():
        if label == "uniform":
            continue
        largest = max(row["cosine"], key=int, default=None)
        if largest is None or not (abs(row["bias_cosine"]) <= 1.2 and math.isfinite(row["bias_cosine_stderr"])):
            said.append((label, f"{label}: too few groups to tell the gradient from noise."))
            continue
        own, uniform = row["cosine"][largest]["mean"], gradients["methods"]["uniform"]["cosine"][largest]["mean"]
        sentence = (
            f"{label}: {row['relative_variance_over_uniform']:.2f} times uniform's relative variance; its mean has a "
            f"cosine of {row['bias_cosine']:.2f} ± {row['bias_cosine_stderr']:.2f} with the policy gradient; batches of "
            f"{largest} groups have {own:.3f}, uniform's {uniform:.3f}."
        )
        said.append((label, sentence))
    return [bias, *together(said)]


def _finite(value: Any) -> Any:
    """Converts to JSON values. NaN and infinities become `None`."""
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    if isinstance(value, (float, np.floating)):
        return float(value) if math.isfinite(value) else None
    return value
