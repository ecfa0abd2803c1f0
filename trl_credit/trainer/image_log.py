"""Writes the credit of a few images' sampler steps during training and sends it to the trackers."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch

from ..credit_pass import CreditResult
from ..records.images import ImageCredit, picture, write_image_report, write_parquet
from ..rewards.images import prompt_text
from ..signals.sampler_steps import SAMPLER
from .credit_log import REWARD, ROW, CreditLog, _Seen
from .diffusion import IMAGES


if TYPE_CHECKING:
    from PIL.Image import Image

    from .diffusion import DiffusionGRPOTrainer


# Batch entries: the latents of the clean images, and what the trajectory and TRL have of the steps
_CLEAN = "credit_log/clean"
_STEPS, _NATIVE, _SAMPLED = f"{SAMPLER}steps", f"{SAMPLER}shares/native", f"{SAMPLER}log_probs"
_OLD = "old_per_token_logps"


class ImageLog(CreditLog):
    """[`CreditLog`] for image models: shows images with the estimate of the clean image at each trained step.

    The estimates are those of the update's own predictions, so there is no further forward of the denoiser. The main
    process keeps the latents of the images to show and decodes them, one at a time, at the end of the update. During such
    an update it holds one more copy of a micro-batch's latents.

    It writes the files of [`~trl_credit.records.images.write_image_report`] and
    [`~trl_credit.records.images.write_parquet`]. In TRL's completions table, `credit/top_tokens` names steps.
    """

    _kept: ClassVar[tuple[str, ...]] = ("advantages", ROW, REWARD, _CLEAN, _STEPS, _NATIVE, _SAMPLED, _OLD)
    _noun: ClassVar[str] = "image"
    _titled: ClassVar[str] = "Image credit"
    _trainer: DiffusionGRPOTrainer
    _images: list[Image | None] = []

    def extend_rollout(self, inputs: list[dict[str, Any]], prompts: list, batch: dict[str, Any]) -> None:
        super().extend_rollout(inputs, prompts, batch)
        if self._trainer.accelerator.is_main_process:
            self._images = [row.get(IMAGES) for row in inputs]

    def see(self, batch: dict[str, Any], result: CreditResult) -> None:
        clean = self._trainer.clean_estimates
        if clean is not None and result.view is not None:
            result = dataclasses.replace(result, view=result.view | {_CLEAN: clean[list(result.rows)]})
        super().see(batch, result)

    @staticmethod
    def _identity(batch: dict[str, Any], row: int) -> list:
        """The log-probs of the noise that made the image."""
        return batch[_SAMPLED][row].tolist()

    def _token_name(self, batch: dict[str, Any], row: int, place: int) -> str:
        return f"step {int(batch[_STEPS][row, place])}"

    def _origin(self, number: int) -> dict[str, Any]:
        return super()._origin(number) | {IMAGES: self._images[number]}

    def _record(self, seen: _Seen) -> ImageCredit:
        trainer, batch = self._trainer, seen.batch
        name = trainer.credit_method.name
        reward = batch[REWARD].item() if REWARD in batch else math.nan
        advantages = seen.token_advantages
        if advantages.dim() == 1:
            advantages = advantages.unsqueeze(1).expand_as(seen.inputs.mask)

        def array(values: torch.Tensor | None) -> np.ndarray | None:
            return None if values is None else values[0].float().numpy()

        return ImageCredit(
            prompt=prompt_text(seen.origin["prompt"]) if seen.origin else None,
            image=seen.origin.get(IMAGES),
            steps=batch[_STEPS][0].tolist(),
            clean=[self._decoded(latents) for latents in batch[_CLEAN][0]],
            logps=array(seen.inputs.policy_logps),
            old_logps=array(batch.get(_OLD)),
            native=array(batch.get(_NATIVE)),
            weights={} if seen.weights is None else {name: array(seen.weights)},
            token_advantages={name: array(advantages)},
            advantage=seen.advantage,
            reward=reward if math.isfinite(reward) else None,
        )

    def _decoded(self, latents: torch.Tensor) -> Image:
        accelerator = self._trainer.accelerator
        with accelerator.autocast():  # as in the rollout
            return self._trainer.sampler.decode(latents.unsqueeze(0).to(accelerator.device))[0]

    def _write_files(self, page: Path, records: list[ImageCredit], about: dict[str, Any]) -> None:
        method = self._trainer.credit_method
        about = about | {"weights_in": "ratio" if method.shapes_ratio else "advantage"}
        write_parquet(page.with_suffix(".parquet"), records, about)
        write_image_report(page, records, about)

    def _draw(self, writer: Any, records: list[ImageCredit], step: int) -> None:
        writer.add_image("credit", np.asarray(picture(records)), step, dataformats="HWC")
