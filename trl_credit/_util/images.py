"""Checks of the images that reward functions get."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any


if TYPE_CHECKING:
    from PIL.Image import Image


def check_images(reward: str, images: Sequence[Any] | None) -> list["Image"]:
    """The images as a list, checked.

    Args:
        reward: Name of the reward function, for messages.
        images: One PIL image for each completion.

    Raises:
        ValueError: There are none (a text run), or one is not a PIL image.
    """
    from PIL import Image

    if images is None:
        raise ValueError(
            f"The reward {reward!r} needs `images`, and this run makes text: train an image model (`trainer: diffusion`), "
            "or use a reward for text."
        )
    images = list(images)
    for i, image in enumerate(images):
        if not isinstance(image, Image.Image):
            found = "None" if image is None else type(image).__name__
            raise ValueError(
                f"The reward {reward!r} needs a PIL image for every completion, but completion {i} has {found}."
            )
        if not image.width or not image.height:
            raise ValueError(
                f"The reward {reward!r}: the image of completion {i} is empty ({image.width}x{image.height})."
            )
    return images
