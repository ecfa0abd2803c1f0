"""Images with black patches, and the prompts that have them."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

from trl_credit import DamagedImageLogps
from trl_credit.signals.damaged_image import black_patches, damaged, seed_of
from trl_credit.signals.second_prompt import processed_images


PATTERN = ["..#.##", ".#.#..", "#.####"]


def test_patches_lie_in_a_grid_from_the_top_left():
    found = black_patches((33, 20), 14, 0.5, seed=1)
    assert found.shape == (20, 33)
    for top in range(0, 20, 14):
        for left in range(0, 33, 14):
            assert len(np.unique(found[top : top + 14, left : left + 14])) == 1
    assert 0 < found.mean() < 1
    assert np.array_equal(found, black_patches((33, 20), 14, 0.5, seed=1))
    assert black_patches((33, 20), 14, 1.0, seed=1).all()
    pattern = black_patches((6, 3), 1, 0.5, seed=1)  # a release that draws others does not resume this one's runs
    assert ["".join("#" if on else "." for on in row) for row in pattern] == PATTERN
    share = black_patches((1000, 1000), 1, 0.3, seed=2).mean()
    assert share == pytest.approx(0.3, abs=0.005)


@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK", "1"])
def test_every_other_pixel_stays(mode):
    image = Image.effect_noise((40, 30), 90).convert(mode)
    found = damaged(image, 7, 0.5, seed=3)
    assert found.size == image.size
    assert found.mode == (mode if mode in ("RGB", "L", "RGBA") else "RGB")
    black = black_patches(image.size, 7, 0.5, seed=3)
    was, now = np.asarray(image.convert(found.mode)), np.asarray(found)
    assert np.array_equal(now[~black], was[~black])
    assert (now[black][..., :3] == 0).all() if now.ndim == 3 else (now[black] == 0).all()


def test_the_draw_is_the_completions_own():
    """No other source of randomness, and nothing that changes between machines."""
    assert seed_of([1, 2, 3], 0) == 15144190410960855201
    seeds = {seed_of(ids, place) for ids in ([1, 2, 3], [1, 2], [3, 2, 1], []) for place in range(3)}
    assert len(seeds) == 12
    state = np.random.get_state()[1].copy()
    first = np.asarray(damaged(Image.new("RGB", (60, 60), "red"), 14, 0.5, seed_of([1, 2, 3], 0)))
    assert np.array_equal(state, np.random.get_state()[1])
    other = np.asarray(damaged(Image.new("RGB", (60, 60), "red"), 14, 0.5, seed_of([1, 2, 4], 0)))
    assert not np.array_equal(first, other)


def chat(*images):
    parts = [{"type": "image", "image": image} for image in images]
    return [{"role": "system", "content": "s"}, {"role": "user", "content": [*parts, {"type": "text", "text": "q"}]}]


class FakeContext:
    """A vision-language model whose processor takes an image's mean."""

    is_vision = True
    context_length = None
    pad_to_multiple_of = None
    tokenizer = SimpleNamespace(pad_token_id=0)
    accelerator = SimpleNamespace(device="cpu")

    def __init__(self):
        self.processing_class = SimpleNamespace(image_processor=self.process)

    def process(self, images, return_tensors):
        means = [[np.asarray(image).mean()] for row in images for image in row]
        return {"pixel_values": torch.tensor(means, dtype=torch.float64)}

    def tokenize_prompts(self, prompts):
        rows = [
            [
                part["image"]
                for m in prompt
                if isinstance(m["content"], list)
                for part in m["content"]
                if "image" in part
            ]
            for prompt in prompts
        ]
        return [[5, 6, 7]] * len(prompts), [row or None for row in rows], {}


def batch_of(images):
    rows = len(images)
    return {
        "prompt_mask": torch.ones(rows, 3, dtype=torch.long),
        "completion_ids": torch.tensor([[8, 9, 0], [8, 9, 4], [8, 9, 9], [8, 9, 0]][:rows]),
        "completion_mask": torch.tensor([[1, 1, 0], [1, 1, 1], [1, 1, 1], [1, 1, 0]][:rows]),
        "num_images": images,
        "pixel_values": torch.full((sum(images), 1), 200.0),
    }


def test_damaged_images_of_a_batch():
    white = Image.new("RGB", (56, 56), (200, 200, 200))
    prompts = [chat(white), chat(white, white), chat(), chat(white)]
    source, context, batch = DamagedImageLogps().source(), FakeContext(), batch_of([1, 2, 0, 1])
    source.extend_rollout(context, [{}] * 4, prompts, batch)
    assert batch[f"{source.key}/present"].tolist() == [True, True, False, True]
    pixels = batch[f"{source.key}/pixel_values"]
    assert [len(row) for row in pixels] == [1, 2, 0, 1]
    assert pixels[0].dtype == batch["pixel_values"].dtype
    assert all(0 < value < 200 for row in pixels for value in row)
    assert torch.equal(pixels[0], pixels[3])  # the same tokens
    assert pixels[1][0] != pixels[1][1]  # each image its own
    assert np.asarray(white).min() == 200  # the prompt's own image is untouched
    second = source.with_second_prompts(context, batch | {"prompt_ids": torch.zeros(4, 3, dtype=torch.long)})
    assert torch.equal(second["pixel_values"], torch.cat(pixels))
    whole = DamagedImageLogps(probability=1.0).source()
    whole.extend_rollout(context, [{}] * 4, prompts, batch)
    assert all((row == 0).all() for row in batch[f"{whole.key}/pixel_values"])


def test_a_batch_without_images():
    source, batch = DamagedImageLogps().source(), batch_of([0, 0])
    del batch["pixel_values"]
    source.extend_rollout(FakeContext(), [{}] * 2, [chat()] * 2, batch)
    assert batch[f"{source.key}/present"].tolist() == [False, False]
    assert f"{source.key}/pixel_values" not in batch
    assert source.second_prompts(FakeContext(), [{}], ["text"], batch) == [None]


def test_what_is_refused():
    source, context = DamagedImageLogps().source(), FakeContext()
    columns = SimpleNamespace(column_names=["prompt", "answer"])
    with pytest.raises(ValueError, match=r"needs a dataset with an `image` or `images` column.*prompt, answer"):
        source.before_trainer_init(context, {"train_dataset": columns})
    context.is_vision = False
    with pytest.raises(ValueError, match="needs a vision-language model; this model is text-only"):
        source.after_trainer_init(context)
    with pytest.raises(ValueError, match=r"needs PIL images.*got str"):
        source.second_prompts(context, [{}], [chat("file.png")], batch_of([1]))
    with pytest.raises(ValueError, match=r"processed to \(1, 1\), the prompts' to \(2, 1\)"):
        processed_images(context, [[Image.new("RGB", (4, 4))]], batch_of([1, 1]), "this")
