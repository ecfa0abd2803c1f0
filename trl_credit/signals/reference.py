"""Distance of the live policy from a reference policy."""

from __future__ import annotations

import contextlib
import copy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from accelerate.utils import is_peft_model
from jaxtyping import Float
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.integrations.deepspeed import is_deepspeed_zero3_enabled

from .._trl import (
    SyncRefModelCallback,
    get_config_model_id,
    use_adapter,
)
from ..batching import loss_mask
from ..model_files import LocalModel
from .base import PolicyForward, Signal, SignalSource
from .divergence import compare_distributions, gathered_head
from .frozen import check_images, check_vocabulary, freeze, load_frozen, prepare_frozen
from .models import HiddenStates, causal_model, check_backbone, completion_hidden_states


if TYPE_CHECKING:
    from .context import PolicyContext


@dataclass(frozen=True)
class ReferenceHellinger(Signal):
    """(B, T) float32 squared Hellinger distance, in [0, 1], between the next-token distributions of the live and the
    reference policy, both at the rollout temperature.

    Args:
        reference: Path or hub id of the reference policy; by default the policy's initial weights.
    """

    reference: str | None = None

    title = "squared Hellinger distance"

    def source(self) -> _ReferenceSource:
        return _ReferenceSource(self.reference)


def _copied(model: PreTrainedModel) -> PreTrainedModel:
    """A full copy of a model object, even if ZeRO-3 partitioned its parameters."""
    gathered = contextlib.nullcontext()
    if is_deepspeed_zero3_enabled():
        import deepspeed

        gathered = deepspeed.zero.GatheredParameters(list(model.parameters()))
    with gathered:
        copied = copy.deepcopy(model)
    # A forward patched by an earlier trainer would run the original model's layers
    vars(copied).pop("forward", None)
    return copied


def _copy_to_reference_adapter(model) -> None:
    """Copies the active adapter to a frozen one named `ref`, as TRL names it."""
    from peft import get_peft_model_state_dict, set_peft_model_state_dict

    active = model.active_adapter
    if "ref" not in model.peft_config:  # else an earlier run added it
        model.add_adapter("ref", model.peft_config[active])
    set_peft_model_state_dict(model, get_peft_model_state_dict(model, adapter_name=active), adapter_name="ref")


def _reference_head(policy: nn.Module) -> nn.Module:
    """The reference's output head for a PEFT policy: a separate one if the head is trained (`modules_to_save`)."""
    head = policy.get_output_embeddings()
    saved = getattr(head, "modules_to_save", None)
    if saved is None:
        return head
    return saved["ref"] if "ref" in saved else head.original_module  # noqa: SIM401 (ModuleDict has no get)


class _ReferenceSource(SignalSource):
    has_forward = True
    needs_hidden_states = True
    follows_policy = True

    def __init__(self, reference: str | None):
        self.reference = reference
        self.model: nn.Module | None = None  # None: the policy with its adapters off (or on `ref`)

    def frozen_model(self, policy: str, adapters: bool) -> str | None:
        return self.reference or (None if adapters else policy)

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        policy, args = arguments["model"], arguments["args"]
        self._quantization_config = arguments.get("quantization_config")
        self._policy_path = policy if isinstance(policy, str) else None
        self._reference_path = None
        policy_is_peft = self._policy_path is None and is_peft_model(policy)
        uses_adapter = arguments.get("peft_config") is not None or policy_is_peft
        self._from_policy = self.reference is None and uses_adapter
        if self._from_policy:
            if args.sync_ref_model:
                raise ValueError(
                    "`sync_ref_model` needs a reference model of its own, but with PEFT the reference is the policy "
                    "with its adapters off. Set `sync_ref_model=False`."
                )
            if policy_is_peft and args.beta == 0.0:
                _copy_to_reference_adapter(policy)
        elif self.reference is not None:
            if args.sync_ref_model and uses_adapter:
                raise ValueError("`sync_ref_model` cannot follow a policy with adapters. Set `sync_ref_model=False`.")
            self._reference_path = LocalModel.find(
                self.reference, trust_remote_code=args.trust_remote_code, field="reference", adapter=False, needs=None
            ).path
        elif self._policy_path is None:
            # Before TRL patches the model's forward and the optimizer changes its weights
            self.model = _copied(policy)

    def after_trainer_init(self, context: PolicyContext) -> None:
        policy = causal_model(context.accelerator.unwrap_model(context.model))
        check_backbone(policy)
        if self._from_policy:
            return
        if self.model is None and self.reference is None and context.ref_model is not None:
            # TRL has loaded the same weights for its KL penalty (and updates them with `sync_ref_model`)
            self.model = context.ref_model
            self._hidden_states = HiddenStates(context.accelerator.unwrap_model(self.model))
            return
        if self.model is None:
            path = self._reference_path or self._policy_path or get_config_model_id(context.model.config)
            self.model = load_frozen(context, path, self._quantization_config, policys_own=self.reference is None)
        check_images(context, self.model, f"The reference {self.reference!r}")
        check_vocabulary(
            self.model,
            policy,
            f"The reference {self.reference!r}",
            "their distributions cannot be compared. Name a reference of the policy's family.",
        )
        if context.args.sync_ref_model and [p.shape for p in self.model.parameters()] != [
            p.shape for p in policy.parameters()
        ]:
            raise ValueError(
                f"`sync_ref_model` needs a reference of the policy's architecture; {self.reference!r} has another. Set "
                "`sync_ref_model=False`."
            )
        freeze(self.model)
        self._hidden_states = HiddenStates(self.model)
        self.model = prepare_frozen(context, self.model)
        if context.args.sync_ref_model:
            context.add_callback(SyncRefModelCallback(ref_model=self.model, accelerator=context.accelerator))

    def bytes_per_token(self, context: PolicyContext) -> int:
        if context.args.sync_ref_model:
            return 0  # it may move between iterations
        model = context.accelerator.unwrap_model(self.model if self.model is not None else context.model)
        return causal_model(model).config.get_text_config().hidden_size * context.head_dtype.itemsize

    def forward(
        self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]
    ) -> Float[Tensor, "rows tokens hidden"]:
        # The head's product takes its own dtype; autocast leaves hidden states wider
        return self._states(context, model, batch).to(context.head_dtype)

    def _states(
        self, context: PolicyContext, model: nn.Module, batch: dict[str, Any]
    ) -> Float[Tensor, "rows tokens hidden"]:
        if self.model is not None:
            return completion_hidden_states(context, self.model, self._hidden_states, batch)
        unwrapped = context.accelerator.unwrap_model(model)
        with use_adapter(unwrapped, "ref" if "ref" in unwrapped.peft_config else None):
            return completion_hidden_states(context, model, context.policy_hidden_states, batch)

    def compute(
        self,
        context: PolicyContext,
        batch: dict[str, Any],
        own: Float[Tensor, "batch tokens hidden"],
        policy: PolicyForward,
    ) -> Float[Tensor, "batch tokens"]:
        unwrap = context.accelerator.unwrap_model
        policy_model = causal_model(unwrap(context.model))
        reference_model, reference_module = policy_model, _reference_head(policy_model)
        if self.model is not None:
            reference_model, reference_module = causal_model(unwrap(self.model)), None
        with (
            gathered_head(policy_model) as policy_head,
            gathered_head(reference_model, reference_module) as reference_head,
        ):
            return compare_distributions(
                policy.hidden_states,
                policy_head,
                own,
                reference_head,
                loss_mask(batch),
                ("squared_hellinger",),
                context.temperature,
                context.head_dtype,
            )["squared_hellinger"]
