"""Samples groups of completions and the continuations of their prefixes, each with its own seed."""

import hashlib
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from ..._util.tokens import token_pieces
from ...evaluation.backends.base import Backend, BackendError, Generation, Request, SamplingSettings
from ...evaluation.run import sample_seed
from ...inspection.scoring import CreditScorer
from ...toy.arithmetic import STYLES, correct_answer
from ...values.bookkeeping import first_mistake, problem_of, rest_parts
from ...values.estimate import Values, sampled_values
from ...values.plan import value_sources, values_of
from ...values.steps import segment_ends
from ...values.store import SAMPLED, Sample, SampleValues, ValueFolder, prefix_key
from ..groups import group_advantages
from .gradients import Tempered, token_logps


GROUPS = "groups"
# Right completions of a prefix that differ in their style's text, an even number
RESTS = 4
Progress = Callable[[str, int, int], None]  # what, how many are done, of how many so far


@dataclass(frozen=True)
class Prefix:
    """A prefix to continue.

    Args:
        key: Of [`prefix_key`].
        prompt: Number of its prompt.
        ids: Token ids of the prompt and of the completion so far.
        tokens: Token ids of the completion so far.
        room: Tokens that may follow.
    """

    key: str
    prompt: int
    ids: tuple[int, ...]
    tokens: tuple[int, ...]
    room: int


@dataclass
class Sampler:
    """Samples from the policy into a folder.

    Args:
        backend: Generates.
        sampling: How. `max_tokens` is the limit of a completion, of which a continuation has what its prefix leaves.
        scorer: Renders prompts and rewards completions.
        folder: Keeps what is sampled.
        examples: The dataset's rows, with `prompt`.
        seed: Of all samples.
        chunk: Continuations that are rewarded and written at once.
        rows: Completions in a forward.
        progress: Called with the kind of samples, how many there are, and of how many.
    """

    backend: Backend
    sampling: SamplingSettings
    scorer: CreditScorer
    folder: ValueFolder
    examples: Sequence[dict[str, Any]]
    seed: int
    chunk: int
    rows: int = 32
    progress: Progress = lambda what, done, total: None
    prompt_ids: list[tuple[int, ...]] = field(init=False)
    # Continuations made in this session
    drawn: int = field(default=0, init=False)

    def __post_init__(self):
        self.prompt_ids = [
            tuple(self.scorer.trainer.tokenize_prompts([example["prompt"]])[0][0]) for example in self.examples
        ]
        for number, ids in enumerate(self.prompt_ids):
            if not ids:
                raise ValueError(f"Prompt {number + 1} is empty: there is nothing to complete.")
        self.sampling = self.backend.prepare(self._requests(1), self.sampling)

    def _requests(self, num_generations: int) -> list[Request]:
        return [
            Request(GROUPS, number, index, sample_seed(self.seed, GROUPS, number, index), ids)
            for number, ids in enumerate(self.prompt_ids)
            for index in range(num_generations)
        ]

    def _generate(self, requests: Sequence[Request]) -> list[Generation]:
        made: dict[tuple, Generation] = {}
        self.backend.generate(requests, self.sampling, lambda request, made_one: made.update({request.key: made_one}))
        if any(made[request.key].ids is None for request in requests):
            raise BackendError(
                "The server does not tell the token ids that it sampled (`return_token_ids`; `vllm serve` does). Use one "
                "that does, or generate here, without `base_url`."
            )
        return [made[request.key] for request in requests]

    def groups(self, num_generations: int, group_size: int) -> list[Sample]:
        """The completions of all prompts, prompt after prompt. Those that the folder has are not sampled again.

        Args:
            num_generations: Completions of each prompt.
            group_size: How many of them make a group, within which advantages are computed.

        Raises:
            ValueError: The folder has completions of other prompts.
        """
        there, digests = self.folder.groups(), [_digest(example) for example in self.examples]
        for (number, _), row in there.items():
            if number < len(digests) and row["digest"] != digests[number]:
                raise ValueError(
                    f"`output_dir`: {str(self.folder.path)!r} holds completions of other prompts than these (prompt "
                    f"{number + 1} is another). Set another one."
                )
        requests = self._requests(num_generations)
        missing = [request for request in requests if (request.problem, request.index) not in there]
        for start in range(0, len(missing), self.chunk):
            self.progress("completions", len(requests) - len(missing) + start, len(requests))
            part = missing[start : start + self.chunk]
            made = self._generate(part)
            rewards = self.scorer.rewards([self.examples[r.problem] for r in part], [m.ids for m in made])
            rows = [
                {
                    "prompt": request.problem,
                    "index": request.index,
                    "digest": digests[request.problem],
                    "ids": list(one.ids),
                    "finished": one.finish == "stop",
                    "reward": reward if np.isfinite(reward) else None,
                }
                for request, one, reward in zip(part, made, rewards, strict=True)
            ]
            self.folder.add_groups(rows)
            there |= {(row["prompt"], row["index"]): row for row in rows}
        self.progress("completions", len(requests), len(requests))
        samples = []
        for number, example in enumerate(self.examples):
            rows = [there[number, index] for index in range(num_generations)]
            rewards = np.array([np.nan if row["reward"] is None else row["reward"] for row in rows])
            starts = range(0, num_generations, group_size)
            advantages = np.concatenate([advantages_of(rewards[start : start + group_size]) for start in starts])
            samples += [
                Sample(
                    prompt=number,
                    index=row["index"],
                    token_ids=tuple(row["ids"]),
                    text=self.scorer.tokenizer.decode(row["ids"], skip_special_tokens=True),
                    finished=row["finished"],
                    reward=float(reward),
                    advantage=float(advantage),
                    example=dict(example),
                    prompt_ids=self.prompt_ids[number],
                )
                for row, reward, advantage in zip(rows, rewards, advantages, strict=True)
            ]
        return samples

    def values(
        self,
        samples: Sequence[Sample],
        logps: Sequence[np.ndarray],
        *,
        every: int | str,
        certain: float,
        bookkeeping: str,
        least: int,
        most: int,
        stderr: float,
    ) -> list[SampleValues]:
        """Values of the samples' prefixes. Draws that the folder has are not made again.

        Args:
            samples: The completions.
            logps: Log-probs of their tokens.
            every: Where to value, see [`segment_ends`].
            certain: See [`value_sources`].
            bookkeeping: On the arithmetic task, `mistakes` values what follows a wrong step by 0, and `exact` the rest by
                the policy's probabilities of the right completions ([`~trl_credit.values.bookkeeping`]); `none` elsewhere.
            least, most, stderr: See [`sampled_values`].
        """
        prefixes: dict[str, Prefix] = {}
        numbers: dict[str, int] = {}
        plans, special = [], self.scorer.tokenizer.all_special_ids
        for sample, own in zip(samples, logps, strict=True):
            pieces = token_pieces(self.scorer.tokenizer, sample.token_ids)
            tokens = [0, *segment_ends(pieces, every)]
            mistake = None if bookkeeping == "none" else mistaken_token(sample, pieces, special)
            sources = value_sources(tokens, own, certain, mistake)
            keys = [prefix_key(sample.prompt, sample.token_ids[:token]) for token in tokens]
            for key, token, (source, _) in zip(keys, tokens, sources, strict=True):
                if source == SAMPLED and key not in prefixes:
                    so_far = sample.token_ids[:token]
                    ids = self.prompt_ids[sample.prompt] + so_far
                    prefixes[key] = Prefix(key, sample.prompt, ids, so_far, self.sampling.max_tokens - token)
                    numbers[key] = len(numbers)
            plans.append((tokens, sources, keys))
        if bookkeeping == "exact":
            estimates = self._exact(list(prefixes.values()))
        else:
            estimates = self._estimate(list(prefixes.values()), samples, least=least, most=most, stderr=stderr)
        return [
            values_of(tokens, sources, sample.reward, [numbers.get(key, -1) for key in keys], estimates)
            for sample, (tokens, sources, keys) in zip(samples, plans, strict=True)
        ]

    def _exact(self, prefixes: list[Prefix]) -> Values:
        """Values of right prefixes of the arithmetic task, in closed form."""
        probabilities = np.zeros((len(prefixes), RESTS))
        for start in range(0, len(prefixes), self.chunk // RESTS):
            self.progress("values", start, len(prefixes))
            part = prefixes[start : start + self.chunk // RESTS]
            probabilities[start : start + len(part)] = self._rest_probabilities(part)
        self.progress("values", len(prefixes), len(prefixes))
        halves = np.stack([probabilities[:, ::2].mean(1), probabilities[:, 1::2].mean(1)], 1)
        error = probabilities.std(1, ddof=1) / np.sqrt(RESTS)
        return Values(probabilities.mean(1), error, np.zeros(len(prefixes), np.int64), halves)

    def _rest_probabilities(self, prefixes: list[Prefix]) -> np.ndarray:
        """(N, RESTS) probabilities that the policy goes on rightly, each with other text of the style."""
        tokenizer = self.scorer.tokenizer
        rows: dict[tuple, np.ndarray] = {}
        found = []  # of each prefix and draw, its row, or none where it has a mistake or no room is left
        for prefix in prefixes:
            prompt = self.examples[prefix.prompt]["prompt"]
            text = tokenizer.decode(prefix.tokens, skip_special_tokens=True)
            for draw in range(RESTS):
                parts = rest_parts(prompt, text, random.Random(f"{self.seed}/{prefix.key}/{draw}"))
                ids, own = [], []
                for rest, role in parts or []:
                    more = tokenizer(rest, add_special_tokens=False)["input_ids"]
                    ids += more
                    own += [role != "style"] * len(more)
                row = (
                    None
                    if parts is None or len(ids) + 1 > prefix.room
                    else (prefix.ids, (*ids, tokenizer.eos_token_id))
                )
                found.append(row)
                if row is not None:
                    rows[row] = np.array([*own, True])
        policy = Tempered(self.scorer.model, self.sampling.temperature)
        logps = token_logps(policy, list(rows), tokenizer.pad_token_id, self.rows)
        values = {row: np.exp(one[own].sum()) for (row, own), one in zip(rows.items(), logps, strict=True)}
        return np.array([0.0 if row is None else values[row] for row in found]).reshape(len(prefixes), RESTS)

    def _estimate(self, prefixes: list[Prefix], samples: Sequence[Sample], **settings: Any) -> Values:
        known = self.folder.draws()
        rewards = [sample.reward for sample in samples if np.isfinite(sample.reward)]
        bounds = (min(rewards), max(rewards)) if len(set(rewards)) > 1 else (0.0, 1.0)
        total = 0

        def rewards_of(chosen: list[Prefix], draws: list[int]) -> list[float]:
            nonlocal total
            total += len(chosen)
            missing = [(p, d) for p, d in zip(chosen, draws, strict=True) if (p.key, d) not in known]
            missing.sort(key=lambda item: (len(item[0].ids), item[0].key, item[1]))  # batches of similar lengths
            for start in range(0, len(missing), self.chunk):
                self.progress("continuations", total - len(missing) + start, total)
                part = missing[start : start + self.chunk]
                requests = [
                    Request(p.key, p.prompt, d, sample_seed(self.seed, p.key, p.prompt, d), p.ids, max_tokens=p.room)
                    for p, d in part
                ]
                made = self._generate(requests)
                rows = [(*p.tokens, *one.ids) for (p, _), one in zip(part, made, strict=True)]
                found = self.scorer.rewards([self.examples[p.prompt] for p, _ in part], rows)
                new = [(p.key, d, reward) for (p, d), reward in zip(part, found, strict=True)]
                self.folder.add_draws(new)
                known.update({(key, d): reward for key, d, reward in new})
                self.drawn += len(part)
            self.progress("continuations", total, total)
            return [known[p.key, d] for p, d in zip(chosen, draws, strict=True)]

        return sampled_values(prefixes, rewards_of, bounds=bounds, **settings)


def _digest(example: dict[str, Any]) -> str:
    text = json.dumps(example, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def advantages_of(rewards: np.ndarray) -> np.ndarray:
    """GRPO's advantages of one group's (N,) rewards. NaN for those without a reward, which are left out."""
    known = np.isfinite(rewards)
    result = np.full(len(rewards), np.nan)
    if known.sum() > 1:
        result[known] = group_advantages(torch.from_numpy(rewards[known]).float()).numpy()
    return result


def can_keep_books(rewards: Sequence[Any], examples: Sequence[dict[str, Any]]) -> bool:
    """Whether this is the embedded model's arithmetic task: its prompts, and the reward of its notation alone. The sums of
    reasoning-gym are not, as a language model may be right in other notations, whose values bookkeeping would not see."""
    if len(rewards) != 1 or rewards[0] is not correct_answer:
        return False
    problems = [problem_of(e["prompt"]) if isinstance(e["prompt"], str) else None for e in examples]
    return all(problem is not None and problem.style in STYLES for problem in problems)


def mistaken_token(sample: Sample, pieces: Sequence[str], special_ids: Sequence[int]) -> int | None:
    """Number of the token with which a completion of the arithmetic task goes wrong. `None` if it does not, or was right
    all the same, by luck."""
    if sample.reward > 0:
        return None
    place = first_mistake(sample.example["prompt"], sample.text, sample.finished)
    if place is None:
        return None
    # The text has no special tokens, such as the end of sequence
    lengths = [0 if i in special_ids else len(piece) for i, piece in zip(sample.token_ids, pieces, strict=True)]
    beyond = np.flatnonzero(np.cumsum(lengths) > place)
    return int(beyond[0]) if len(beyond) else len(pieces) - 1  # it ended too early
