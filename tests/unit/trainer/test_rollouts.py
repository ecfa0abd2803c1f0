"""Rollouts that TRL rejects."""

import pytest
from helpers import config
from support.tools import vision

from trl_credit import CreditGRPOTrainer


def test_blank_image_needs_an_image_column(tmp_path):
    example = vision()
    model, processor = example.tiny_model()
    with pytest.raises(ValueError, match="needs a dataset with an `image` or `images` column"):
        CreditGRPOTrainer(
            model=model,
            processing_class=processor,
            reward_funcs=example.names_the_colour,
            args=config(tmp_path, credit={"method": "gcpo", "negative_prompt": "blank_image"}),
            train_dataset=example.make_dataset(4).remove_columns("image"),
        )
