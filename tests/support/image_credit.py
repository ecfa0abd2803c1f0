"""Image credit records, ordinary and odd."""

import math
from dataclasses import replace

import numpy as np
from PIL import Image
from support.evaluation_runs import HOSTILE

from trl_credit.records.images import ImageCredit


def noise(seed, size=(8, 8), mode="L"):
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 4), np.uint8)
    return Image.fromarray(pixels, "RGBA").convert(mode)


def make_image(steps=(0, 1, 2), seed=0, size=(8, 8), mode="L", advantage=1.25, **changes):
    draw, count = np.random.default_rng(seed), len(steps)
    weights = draw.exponential(size=count).astype(np.float32)
    logps = -draw.random(count).astype(np.float32)
    record = ImageCredit(
        prompt="a handwritten 3",
        image=noise(seed, size, mode),
        steps=list(steps),
        clean=[noise(1000 * seed + step, size, mode) for step in steps],
        logps=logps,
        old_logps=logps - np.float32(0.001),
        native=np.full(count, 0.1, np.float32),
        weights={"pcpo": weights},
        token_advantages={"pcpo": weights * np.float32(advantage)},
        advantage=advantage,
        reward=0.5,
    )
    return replace(record, **changes)


def image_about(**changes):
    return {
        "title": "Image credit of update 7",
        "model": "trl_credit:digits",
        "step": 7,
        "methods": {"pcpo": {"method": "pcpo", "form": "hinge"}},
        "weights_in": "ratio",
    } | changes


def odd_images():
    nan = np.array([math.nan, math.inf, -math.inf], np.float32)
    return [
        make_image(steps=[9]),
        make_image(steps=[]),
        make_image(size=(1, 1), mode="RGB"),
        make_image(size=(1, 300), mode="RGBA"),
        make_image(size=(700, 20), mode="CMYK"),
        make_image(old_logps=nan, native=nan, weights={"pcpo": nan}, token_advantages={"pcpo": nan},
                   advantage=math.nan, reward=math.nan),
        make_image(weights={}, token_advantages={}, native=None, old_logps=None, advantage=None, reward=None),
        make_image(prompt=HOSTILE, info={HOSTILE: HOSTILE}, weights={HOSTILE: np.ones(3, np.float32)}),
        make_image(prompt="x" * 5000),
    ]  # fmt: skip
