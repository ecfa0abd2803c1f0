"""Log-probs of the completion's tokens under another model."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jaxtyping import Float
from torch import Tensor, nn
from transformers import AutoTokenizer

from ..batching import loss_mask
from ..model_files import LocalModel
from .base import Signal, SignalSource
from .divergence import gathered_head
from .frozen import check_images, check_vocabulary, freeze, load_frozen, no_images, prepare_frozen, reads_images
from .models import HiddenStates, causal_model, check_backbone, completion_hidden_states, vocabulary_size
from .token_statistics import token_statistics


if TYPE_CHECKING:
    from .context import PolicyContext


@dataclass(frozen=True)
class OtherModelLogps(Signal):
    """(B, T) float32 log-probs, in nats, of the completion's tokens under another model, which is not trained, at the
    rollout temperature.

    Args:
        model: Path or hub id of a model with the policy's tokenizer and vocabulary, that reads images if prompts have any.
    """

    model: str

    title = "log-prob under another model"

    def source(self) -> _OtherModelSource:
        return _OtherModelSource(self.model)


class _OtherModelSource(SignalSource):
    has_forward = True

    def __init__(self, name: str):
        self.name = name
        self.model: nn.Module | None = None

    def frozen_model(self, policy: str, adapters: bool) -> str | None:
        return self.name

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        self._quantization_config = arguments.get("quantization_config")
        trust = arguments["args"].trust_remote_code
        self._path = LocalModel.find(self.name, trust_remote_code=trust, adapter=False, needs=None).path

    def after_trainer_init(self, context: PolicyContext) -> None:
        same_tokens = self._check_tokenizer(context)
        model = load_frozen(context, self._path, self._quantization_config)
        check_backbone(model)
        check_images(context, model, f"The model {self.name!r}")
        self._reads_images = reads_images(model)
        if not same_tokens or vocabulary_size(model) < len(context.tokenizer):
            check_vocabulary(
                model,
                causal_model(context.accelerator.unwrap_model(context.model)),
                f"The model {self.name!r}",
                "it cannot score the policy's tokens. Name a model of the policy's family, with the same tokenizer.",
            )
        freeze(model)
        self._hidden_states = HiddenStates(model)
        self.model = prepare_frozen(context, model)

    def _check_tokenizer(self, context: PolicyContext) -> bool:
        """Whether the model's tokenizer is known to be the policy's. Models of one family may pad their heads to
        different sizes, so the number of logits alone says little.

        Raises:
            ValueError: They give some token different ids.
        """
        trust = context.args.trust_remote_code
        try:
            other = AutoTokenizer.from_pretrained(self._path, trust_remote_code=trust).get_vocab()
        except (OSError, ValueError, KeyError):  # no tokenizer beside the weights
            return False
        vocabulary = context.tokenizer.get_vocab()
        if len(vocabulary.keys() & other.keys()) < len(vocabulary) / 2:
            return False  # without files, some classes make a tokenizer of nothing but special tokens
        if differing := [token for token, place in vocabulary.items() if other.get(token, place) != place]:
            raise ValueError(
                f"The model {self.name!r} has another tokenizer than the policy: {len(differing)} tokens, such as "
                f"{differing[0]!r}, have other ids, so it cannot score the policy's tokens. Name a model of the policy's "
                "family."
            )
        return True

    def bytes_per_token(self, context: PolicyContext) -> int:
        return 4

    def forward(self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]) -> Float[Tensor, "rows tokens"]:
        if batch.get("pixel_values") is not None and not self._reads_images:  # of tools or an environment
            unwrapped = context.accelerator.unwrap_model(self.model)
            raise ValueError(no_images(f"The model {self.name!r}", unwrapped, "a prompt has images"))
        states = completion_hidden_states(context, self.model, self._hidden_states, batch)
        with gathered_head(causal_model(context.accelerator.unwrap_model(self.model))) as head:
            found = token_statistics(
                states, head, batch["completion_ids"], loss_mask(batch), context.temperature, context.head_dtype
            )
        return found["logps"]
