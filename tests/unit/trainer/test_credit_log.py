"""Settings of the credit log."""

import pytest
from helpers import config


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"credit_log_steps": 0}, "`credit_log_steps` must be at least 1"),
        (
            {"credit_log_steps": 1, "credit_log_completions": 0},
            "`credit_log_completions` must be at least 1",
        ),
        ({"credit_log_completions": 3}, "has no effect without `credit_log_steps`"),
        ({"credit_log_steps": 3, "log_completions": True, "logging_steps": 2}, "must be a multiple of `logging_steps`"),
    ],
)
def test_settings(settings, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        config(tmp_path, **settings)
