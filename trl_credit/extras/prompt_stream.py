"""Draws any number of prompts in the order of TRL's sampler."""

import copy
import logging
from collections.abc import Collection, Iterator
from typing import Any

from datasets import Dataset, IterableDataset
from trl.trainer.utils import RepeatSampler, repeat_iterable_dataset


logger = logging.getLogger(__name__)


class PromptStream:
    """The prompts of a training set in TRL's order, one by one, pass after pass.

    Args:
        dataset: The training set.
        batch_size: Prompts per generation batch. TRL drops the prompts at the end of a pass that do not fill one.
        shuffle: TRL's `shuffle_dataset`.
        seed: TRL's `seed`.
    """

    def __init__(self, dataset: Dataset | IterableDataset, *, batch_size: int, shuffle: bool, seed: int):
        self._dataset, self._settings = dataset, {"batch_size": batch_size, "shuffle": shuffle, "seed": seed}
        self._indexed = not isinstance(dataset, IterableDataset)
        if self._indexed:
            self._source = RepeatSampler(
                dataset, mini_repeat_count=1, batch_size=batch_size, shuffle=shuffle, seed=seed
            )
            self._pass_length = len(self._source)
        else:
            shuffled = dataset.shuffle(seed=seed) if shuffle else dataset
            self._source = repeat_iterable_dataset(shuffled, mini_repeat_count=1, batch_size=batch_size)
            self._pass_length = None  # known when the first pass is over
        self._pass, self._position, self._deferred = 0, 0, []
        self._prompts = self._begin_pass()

    def _begin_pass(self) -> Iterator:
        if not self._indexed:
            self._source.set_epoch(self._pass)
        return iter(self._source)

    @property
    def passes(self) -> float:
        """Passes over the data so far; only whole passes while a pass's length is unknown."""
        used = self._position - len(self._deferred)
        return self._pass + (used / self._pass_length if self._pass_length else 0.0)

    def draw(self, count: int, tried: Collection = ()) -> list:
        """The next `count` prompts: indices of a map-style dataset, rows of an iterable one.

        Args:
            count: Number of prompts.
            tried: Indices to defer, because this generation batch has already used them.

        Returns:
            The prompts, fewer than `count` if the data has no more untried ones.
        """
        drawn: list = []
        begun = False

        def new(prompt) -> bool:
            return not self._indexed or (prompt not in tried and prompt not in drawn)

        while len(drawn) < count:
            deferred = next((prompt for prompt in self._deferred if new(prompt)), None)
            if deferred is not None:
                self._deferred.remove(deferred)
                drawn.append(deferred)
                continue
            prompt = next(self._prompts, None)
            if prompt is not None:
                self._position += 1
                (drawn if new(prompt) else self._deferred).append(prompt)
                continue
            if begun or self._position == 0:
                break
            begun = True
            self._pass_length = self._position
            self._pass, self._position = self._pass + 1, 0
            self._prompts = self._begin_pass()
        return drawn

    def example(self, prompt) -> dict[str, Any]:
        """The dataset row of a drawn prompt, as a new object at each call."""
        return self._dataset[prompt] if self._indexed else copy.deepcopy(prompt)

    def state_dict(self) -> dict[str, Any]:
        """The stream's position, for checkpoints."""
        return {
            "size": len(self._dataset) if self._indexed else None,
            "pass": self._pass,
            "position": self._position,
            "pass_length": self._pass_length,
            "deferred": list(self._deferred),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Moves to a saved position. If the dataset's size has changed, warns and starts from the beginning."""
        if self._indexed and state["size"] != len(self._dataset):
            logger.warning(
                "The training set now has %d rows (checkpoint: %s): prompts are drawn from the start.",
                len(self._dataset),
                state["size"],
            )
            return
        self.__init__(self._dataset, **self._settings)
        while self._pass < state["pass"]:
            if self._indexed:
                next(self._prompts, None)  # draws the pass's permutation
            self._pass += 1
            if self._indexed or self._pass == state["pass"]:
                self._prompts = self._begin_pass()
        for _ in range(state["position"]):
            next(self._prompts, None)
        self._position, self._deferred = state["position"], list(state["deferred"])
        self._pass_length = state["pass_length"]
