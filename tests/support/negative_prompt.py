"""Settings for negative prompts from a column."""

from helpers import config


def column_args(tmp_path, **settings):
    return config(tmp_path, credit={"method": "gcpo", "negative_prompt": "column"}, max_steps=1, **settings)
