"""The completions and values that a run compares with: sampled now, or those of an earlier run."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

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
from ...values.store import Sample, SampleValues, ValueFolder, read_values
from .config import KEPT, TrueConfig
from .gradients import Tempered, token_logps
from .sampling import Progress, Sampler, can_keep_books


# Continuations that are rewarded and written at once
CHUNK = 2048


@dataclass(frozen=True)
class Samples:
    """Completions with values, and what scores them.

    Args:
        scorer: Has the methods.
        samples: The completions.
        values: Their values.
        about: Describes the run: `settings`, `notes` and more.
    """

    scorer: CreditScorer
    samples: list[Sample]
    values: list[SampleValues]
    about: Mapping[str, Any]


def sampled(config: TrueConfig, progress: Progress) -> Samples:
    """Samples what the folder does not have yet."""
    examples, rewards = read_rows(config)
    books = can_keep_books(rewards, examples)
    if books:  # what the data would say of a solution, for the methods that read one
        examples = [example | {"solution": _solution(example["prompt"])} for example in examples]
    config.columns = tuple(examples[0]) if examples else ()
    files = LocalModel.find(config.model, trust_remote_code=bool(config.trust_remote_code))
    backend = make_backend(_eval_config(config))
    scorer = build_scorer(config, rewards)
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
        # With gradients, two groups of each prompt: a method's gradient is compared with the true one of the other
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
    return Samples(scorer, samples, values, about)


def read_again(config: TrueConfig) -> Samples:
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
            f"`gradients`: {config.values!r} has one group of each prompt, and gradients need two, as it was made "
            "without gradients. Set `--no_gradients` again."
        )
    scorer = build_scorer(config, [])
    return Samples(scorer, samples, values, about)


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
