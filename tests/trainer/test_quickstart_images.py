"""The quickstart for images trains, and what it saves draws the digits that are asked for."""

import json

import pytest
from PIL import Image

from trl_credit import quickstart
from trl_credit.methods.registry import build_credit
from trl_credit.quickstart_images import draw, measure, train
from trl_credit.toy.digits import load_digits_pipeline


@pytest.mark.parametrize("name", ["uniform", "pcpo"])
def test_training_raises_the_reward(name, tmp_path):
    result, images = train(build_credit(name).to_dict(), tmp_path, 48, 0)
    before, *_, after = result["evaluations"]
    assert before["reward"] < 0.6
    assert after["reward"] > 0.85
    assert after["distance"] < 4  # they are digits still
    assert [evaluation["update"] for evaluation in result["evaluations"]] == list(range(0, 49, 4))
    saved = load_digits_pipeline(tmp_path)
    assert draw(saved, 20, 1) == images
    assert measure(saved, 0)["reward"] == after["reward"]


def test_quickstart_runs(tmp_path, capsys):
    words = ["--images", "--output_dir", str(tmp_path), "--max_steps", "2", "--methods", "uniform"]
    quickstart.main([*words, '{"method": "pcpo", "form": "ratio"}', "pcpo"])
    output = capsys.readouterr().out
    assert "The digit asked for" in output
    results = json.loads((tmp_path / "results.json").read_text())
    assert list(results) == ["uniform", "pcpo", "pcpo'"]
    # from the same start; the first updates draw the same images, whatever the credit
    assert len({result["rewards"][0] for result in results.values()}) == 1
    assert len({result["evaluations"][0]["distance"] for result in results.values()}) == 1
    with Image.open(tmp_path / "images.png") as picture:
        assert picture.width > 800
    for name in results:
        load_digits_pipeline(tmp_path / name)
