"""The table and the picture of the quickstart for images."""

import pytest
from PIL import Image

from trl_credit import quickstart, quickstart_images
from trl_credit.quickstart_images import at_goal, picture, report
from trl_credit.toy.digits import load_digits_pipeline


def evaluations(*rewards, distances=None):
    distances = distances or [1.0 + i for i in range(len(rewards))]
    found = enumerate(zip(rewards, distances, strict=True))
    return [{"update": 3 * i, "reward": reward, "distance": distance} for i, (reward, distance) in found]


@pytest.mark.parametrize(
    ("rewards", "expected"),
    [
        ([0.5, 0.8, 1.0], {"update": 4.5, "distance": 2.5}),
        ([0.5, 0.9, 1.0], {"update": 3, "distance": 2.0}),
        ([0.5, 0.95, 0.8, 0.95], {"update": 8 / 3, "distance": 1 + 8 / 9}),  # the first time
        ([0.95, 1.0], {"update": 0, "distance": 1.0}),
        ([0.5, 0.6], None),
        ([], None),
    ],
)
def test_goal(rewards, expected):
    assert at_goal(evaluations(*rewards), 0.9) == (expected and pytest.approx(expected))


RESULTS = {
    name: {
        "evaluations": evaluations(0.5, reward, distances=[0.7, 4.25]),
        "rewards": [0.5, 0.6, 0.7, 0.9],
        "mean_reward": 0.675,
        "seconds_per_update": 0.1,
    }
    for name, reward in {"uniform": 0.8, "pcpo $x$": 0.98}.items()
}


def test_table(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "120")
    report(RESULTS)
    lines = capsys.readouterr().out.splitlines()
    (uniform,), (pcpo,) = ([line for line in lines if name in line] for name in ("uniform", "pcpo $x$"))
    assert uniform.count("\u2013") == 2  # 0.9 was not reached
    for value in ("0.500", "0.980", "0.675", "3.66"):
        assert value in pcpo
    assert "0.70 before training" in " ".join(lines)


def test_picture(tmp_path):
    images = {name: [Image.new("L", (8, 8), 255)] * 20 for name in ("before", "uniform", "pcpo")}
    picture(RESULTS, images, tmp_path / "new" / "images.png")
    with Image.open(tmp_path / "new" / "images.png") as found:
        assert found.mode == "RGB"
        assert found.width > 800
    one = {"uniform": RESULTS["uniform"] | {"rewards": [0.5]}}
    picture(one, images, tmp_path / "one.png")


def test_measures():
    pipeline = load_digits_pipeline()
    found = quickstart_images.measure(pipeline, 0)
    assert 0.5 < found["reward"] < 0.62
    assert 0.5 < found["distance"] < 1.2
    assert found == quickstart_images.measure(pipeline, 0) != quickstart_images.measure(pipeline, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max_steps", "0"], "--max_steps must be at least 1, got 0"),
        (["--methods", "pcop"], "pcop"),
        (["--max_stps", "1"], "unrecognized arguments"),
    ],
)
def test_wrong_words(words, message, capsys):
    with pytest.raises(SystemExit) as raised:
        quickstart.main(["--images", *words])
    assert raised.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert "trl-credit quickstart --images: error" in error
