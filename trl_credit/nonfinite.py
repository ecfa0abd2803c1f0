"""Updates with a NaN or an infinity: skipped, counted, and the end of the run if they do not stop."""

import math
from pathlib import Path

import torch
from accelerate.logging import get_logger

from .batching import PLAN
from .checkpoint import save_tree


logger = get_logger(__name__)

DEFAULT_MAX_NONFINITE_UPDATES = 5

# Where the batch of the first of several such updates in a row is written, in `output_dir`
BATCH_FOLDER = "nonfinite_batch"


class NonfiniteGuardMixin:
    """Skips an update whose loss or gradient norm is not finite, on every process.

    Parameters and optimizer state stay as they are; the learning-rate schedule goes on. Under DeepSpeed its own overflow
    check skips the step (unless its configuration switches that off), and in fp16 the loss scaler does, for which
    infinite gradients are nothing unusual: there an update counts only if its loss is not finite. `nonfinite_updates` is
    logged, the number so far, once there is one. The micro-batches of the first of several in a row are written to
    `output_dir/nonfinite_batch`, one file per process, to be read with [`~trl_credit.checkpoint.load_tree`].

    Raises:
        FloatingPointError: From `train`, after `max_nonfinite_updates` such updates in a row.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self._nonfinite_updates = self._nonfinite_in_row = 0
        self._update_batches: list[dict] = []
        self._update_finite: list[torch.Tensor] = []

    def _prepare_for_training(self, *args, **kwargs):
        self._nonfinite_in_row = 0
        self._update_batches.clear()  # of an earlier run that ended in the middle of an update
        self._update_finite.clear()
        return super()._prepare_for_training(*args, **kwargs)

    def compute_loss(self, model, inputs, *args, **kwargs):
        loss = super().compute_loss(model, inputs, *args, **kwargs)
        if self.model.training:
            self._update_batches.append(inputs)
            self._update_finite.append(torch.isfinite(loss.detach()))
        return loss

    def _get_grad_norm(self, model, grad_norm=None):
        grad_norm = super()._get_grad_norm(model, grad_norm=grad_norm)
        finite = not self._update_finite or bool(torch.stack(self._update_finite).all())
        if self.accelerator.mixed_precision != "fp16" and grad_norm is not None:  # DeepSpeed can be told to take none
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

    def _skip_update(self, model) -> None:
        if not self.is_deepspeed_enabled:
            model.zero_grad()  # optimizers leave parameters without a gradient alone
        self._nonfinite_updates += 1
        self._nonfinite_in_row += 1
        folder = Path(self.args.output_dir) / BATCH_FOLDER
        if self._nonfinite_in_row == 1:
            batches = [{k: v for k, v in batch.items() if k != PLAN} for batch in self._update_batches]
            tree = {"global_step": self.state.global_step, "batches": batches}
            save_tree(folder / f"rank_{self.accelerator.process_index}.safetensors", tree)
        most = getattr(self.args, "max_nonfinite_updates", DEFAULT_MAX_NONFINITE_UPDATES)
        message = f"The loss or the gradient norm of update {self.state.global_step + 1} is not finite: it is skipped."
        if self._nonfinite_in_row < most:
            logger.warning(message)
            return
        raise FloatingPointError(
            f"{message} It is number {most} in a row (`max_nonfinite_updates`), so the run ends. The batch of the first of "
            f"them is in {str(folder)!r}; the parameters are those before it. Usual causes are a learning rate that is too "
            "high, half precision, and a NaN in the model that was loaded."
        )

    def _extra_state(self):
        counts = {"nonfinite_updates": self._nonfinite_updates, "nonfinite_in_row": self._nonfinite_in_row}
        return super()._extra_state() | counts

    def _load_extra_state(self, state):
        super()._load_extra_state(state)
        self._nonfinite_updates, self._nonfinite_in_row = state["nonfinite_updates"], state["nonfinite_in_row"]
