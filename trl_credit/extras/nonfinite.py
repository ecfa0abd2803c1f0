"""Skips and counts updates with a NaN or an infinity, and ends the run if they do not stop.

Parameters with a NaN or an infinity end the run before they are saved.
"""

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object

from .checkpoints import save_tree
from .config import default_of
from .shards import local_part


logger = get_logger(__name__)

# Folder in `output_dir` for the batch of the first of several skipped updates in a row
BATCH_FOLDER = "nonfinite_batch"


def nonfinite_names(parameters: Iterable[tuple[str, torch.nn.Parameter]]) -> list[str]:
    """Names of the parameters whose part on this process has a NaN or an infinity.

    Reads each parameter once, without extra memory. If all are finite, as they should be, it waits for the device only
    once.
    """
    parts = [(name, local_part(parameter)) for name, parameter in parameters]
    parts = [(name, part) for name, part in parts if part.dtype in _DTYPES and part.numel()]
    if not parts:
        return []
    # A NaN anywhere makes both extremes NaN, and on a CPU this is torch's fastest test
    extremes = [value.to(parts[0][1].device) for _, part in parts for value in torch.aminmax(part)]
    finite = torch.stack(extremes).isfinite().view(-1, 2).all(-1)
    return [] if finite.all() else [name for (name, _), good in zip(parts, finite.tolist(), strict=True) if not good]


_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


class NonfiniteGuardMixin:
    """Skips an update whose loss or gradient norm is not finite, on every process.

    Parameters and optimizer state stay unchanged; the learning-rate schedule continues. Under DeepSpeed its own
    overflow check skips the step (unless its config switches that off). In fp16 the loss scaler does, and since it
    often meets infinite gradients, an update counts there only if its loss is not finite. `nonfinite_updates` logs the
    number so far, once there is one. The micro-batches of the first of several in a row are written to
    `output_dir/nonfinite_batch`, one file per process; [`~trl_credit.extras.checkpoints.load_tree`] reads them.

    The guard checks all parameters before the first update and the trained ones after each update. A NaN or an infinity
    ends the run before the parameters are saved or used to generate, so the last checkpoint is an earlier one.

    Raises:
        FloatingPointError: From `train`, after `max_nonfinite_updates` such updates in a row, or for a non-finite
            parameter, which the message names.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._nonfinite_updates = self._nonfinite_in_row = 0
        self._update_batches: list[dict] = []
        self._update_finite: list[torch.Tensor] = []

    def _prepare_for_training(self, *args, **kwargs):
        self._nonfinite_in_row = 0
        self._update_batches.clear()  # left over from a run that ended mid-update
        self._update_finite.clear()
        prepared = super()._prepare_for_training(*args, **kwargs)
        self._checked_step = self.state.global_step
        self._check_parameters(
            self.model.named_parameters(),
            "before the first update: the loaded model is damaged, or overflows in its dtype",
        )
        return prepared

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training:
            self._update_batches.append(inputs)
            self._update_finite.append(torch.isfinite(loss.detach()))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite = not self._update_finite or bool(torch.stack(self._update_finite).all())
        if self.accelerator.mixed_precision != "fp16" and grad_norm is not None:  # DeepSpeed may compute none
            finite = math.isfinite(float(grad_norm)) and finite
        nonfinite = torch.tensor(int(not finite), device=self.accelerator.device)
        if self.accelerator.reduce(nonfinite, reduction="sum"):
            self._skip_update(model)
        else:
            self._nonfinite_in_row = 0
        self._update_batches.clear()
        self._update_finite.clear()
        if self._nonfinite_updates:
            self._metrics["train"]["nonfinite_updates"] = [float(self._nonfinite_updates)]
        return grad_norm

    def _maybe_log_save_evaluate(self, *args, **kwargs):
        if self._checked_step != self.state.global_step:  # the end of an epoch calls this again
            self._checked_step = self.state.global_step
            self._check_parameters(
                ((name, parameter) for name, parameter in self.model.named_parameters() if parameter.requires_grad),
                f"after update {self.state.global_step}, whose gradient was finite. Usual causes are the `learning_rate` "
                f"({self.args.learning_rate}), `weight_decay` ({self.args.weight_decay}) and `adam_epsilon` "
                f"({self.args.adam_epsilon})",
            )
        super()._maybe_log_save_evaluate(*args, **kwargs)

    def _check_parameters(self, parameters: Iterable[tuple[str, torch.nn.Parameter]], when: str) -> None:
        names = nonfinite_names(parameters)
        count = torch.tensor(int(bool(names)), device=self.accelerator.device)
        if not self.accelerator.reduce(count, reduction="sum"):
            return
        names = list(dict.fromkeys(gather_object(names)))
        more = f" and {len(names) - 1} more are" if len(names) > 1 else " is"
        raise FloatingPointError(
            f"The parameter {names[0]!r}{more} not finite {when}. The run ends, and nothing more is saved."
        )

    def _skip_update(self, model) -> None:
        if not self.is_deepspeed_enabled:
            model.zero_grad()  # optimizers skip parameters without a gradient
        self._nonfinite_updates += 1
        self._nonfinite_in_row += 1
        folder = Path(self.args.output_dir) / BATCH_FOLDER
        if self._nonfinite_in_row == 1:
            batches = [self._plain_batch(batch) for batch in self._update_batches]
            tree = {"global_step": self.state.global_step, "batches": batches}
            save_tree(folder / f"rank_{self.accelerator.process_index}.safetensors", tree)
        most = getattr(self.args, "max_nonfinite_updates", default_of("max_nonfinite_updates"))
        message = f"Update {self.state.global_step + 1} has a non-finite loss or gradient norm and is skipped."
        if self._nonfinite_in_row < most:
            logger.warning(message)
            return
        raise FloatingPointError(
            f"{message} It is number {most} in a row (`max_nonfinite_updates`), so the run ends. The first one's batch is "
            f"in {str(folder)!r}; the parameters are those from before it. Usual causes are a learning rate that is too "
            "high, half precision, and a NaN in the loaded model."
        )

    def _plain_batch(self, batch: dict[str, Any]) -> dict[str, Any]:
        """The entries of a micro-batch that can be saved: tensors, lists and numbers."""
        return batch

    def _extra_state(self):
        counts = {"nonfinite_updates": self._nonfinite_updates, "nonfinite_in_row": self._nonfinite_in_row}
        return super()._extra_state() | counts

    def _load_extra_state(self, state):
        super()._load_extra_state(state)
        self._nonfinite_updates, self._nonfinite_in_row = state["nonfinite_updates"], state["nonfinite_in_row"]
