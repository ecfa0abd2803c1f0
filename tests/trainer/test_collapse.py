"""A run that collapses to uniform weights."""

import logging

from support.credit_log import train


GCPO = {"method": "gcpo", "negative_prompt": "wrong! {prompt}"}


def test_a_run_that_collapses_is_told(tiny_model, tmp_path, caplog):
    """The paper's temperature on a tiny learning rate; one warning, although the updates go on."""
    with caplog.at_level(logging.WARNING):
        train(tiny_model, tmp_path, credit="dgpo", max_steps=24, learning_rate=1e-6)
    (message,) = [r.getMessage() for r in caplog.records if "effectively uniform" in r.getMessage()]
    assert "Credit method 'dgpo': weights were effectively uniform for 20 updates" in message
    assert "lower `temperature` to about" in message
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        train(tiny_model, tmp_path / "sharp", credit={"method": "dgpo", "temperature": "adaptive"}, max_steps=24)
    assert "effectively uniform" not in caplog.text
