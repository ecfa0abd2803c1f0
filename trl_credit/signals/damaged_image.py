"""Log-probs of the same completion under its prompt with damaged images."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from .base import Signal
from .second_prompt import (
    Prompt,
    SecondPromptSource,
    check_image_column,
    check_vision,
    content_parts,
    processed_images,
    with_images_replaced,
)


if TYPE_CHECKING:
    from .context import PolicyContext


_SETTING = "A method that damages images"  # for messages
# Modes in which an image is damaged as it is; images of other modes become RGB
_MODES = ("L", "RGB", "RGBA")


def seed_of(token_ids: Sequence[int], place: int) -> int:
    """The seed for one image of a completion's prompt: the same after a resume and on every process.

    Args:
        token_ids: The completion's tokens.
        place: The image's place in the prompt, from 0.
    """
    numbers = np.asarray([place, *token_ids], dtype="<i8")
    return int.from_bytes(hashlib.sha256(numbers.tobytes()).digest()[:8], "little")


def black_patches(size: tuple[int, int], patch_size: int, probability: float, seed: int) -> np.ndarray:
    """(height, width) bool, the pixels of an image that turn black.

    Args:
        size: Width and height.
        patch_size: Side of a patch in pixels. The patches lie in a grid from the top left; those at the other edges are cut.
        probability: With which each patch turns black, independently.
        seed: Of the draw.
    """
    width, height = size
    rows, columns = -(-height // patch_size), -(-width // patch_size)
    chosen = np.random.Generator(np.random.PCG64(seed)).random((rows, columns)) < probability
    return chosen.repeat(patch_size, axis=0).repeat(patch_size, axis=1)[:height, :width]


def damaged(image: Image.Image, patch_size: int, probability: float, seed: int) -> Image.Image:
    """A copy of an image with some of its patches black; see [`black_patches`]."""
    image = image if image.mode in _MODES else image.convert("RGB")
    black = Image.fromarray(black_patches(image.size, patch_size, probability, seed).astype(np.uint8) * 255)
    return Image.composite(Image.new(image.mode, image.size, "black"), image, black)


@dataclass(frozen=True)
class DamagedImageLogps(Signal):
    """(B, T) float32 log-probs, in nats, of the completion's tokens under the live policy after the prompt with damaged
    images, at the rollout temperature. Each completion has its own damage.

    A completion without an image has the policy's own log-probs;
    [`HasSecondPrompt`][trl_credit.signals.second_prompt.HasSecondPrompt] of this signal tells.

    Args:
        patch_size: Side of the patches, in pixels.
        probability: With which each patch turns black.
    """

    patch_size: int = 14
    probability: float = 0.5

    title = "damaged-image log-prob"

    def source(self) -> _DamagedImageSource:
        return _DamagedImageSource(self.patch_size, self.probability)


class _DamagedImageSource(SecondPromptSource):
    noun = "prompt with damaged images"
    optional = True
    needs_images = True

    def __init__(self, patch_size: int, probability: float):
        super().__init__(f"damaged_image/{patch_size}/{probability}")
        self.patch_size = patch_size
        self.probability = probability

    def before_trainer_init(self, context: PolicyContext, arguments: dict[str, Any]) -> None:
        check_image_column(arguments, _SETTING)

    def after_trainer_init(self, context: PolicyContext) -> None:
        check_vision(context, _SETTING)

    def second_prompts(
        self, context: PolicyContext, examples: list[dict], prompts: list[Prompt], batch: dict[str, Any]
    ) -> list[Prompt | None]:
        found = []
        for row, prompt in enumerate(prompts):
            token_ids = batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()

            def replace(image: Image.Image, place: int, token_ids: list[int] = token_ids) -> Image.Image:
                return damaged(image, self.patch_size, self.probability, seed_of(token_ids, place))

            has_image = any(part.get("type") == "image" for part in content_parts(prompt))
            found.append(with_images_replaced(prompt, replace, _SETTING) if has_image else None)
        return found

    def add_images(self, context: PolicyContext, images: Any, batch: dict[str, Any]) -> None:
        if batch.get("pixel_values") is not None:
            batch[f"{self.key}/pixel_values"] = processed_images(context, images, batch, _SETTING)
