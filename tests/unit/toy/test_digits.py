"""The embedded image model, its task, its reward and its quality measure."""

import itertools
import json
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from peft.utils import get_peft_model_state_dict
from PIL import Image
from scipy.linalg import sqrtm
from sklearn.datasets import load_digits

from trl_credit.data import load_splits
from trl_credit.model_files import LocalModel, embedded_model_path, resolve_model
from trl_credit.toy import build_digits, digits
from trl_credit.toy.digits import (
    DigitDenoiser,
    DigitsPipeline,
    digit_of,
    digit_probability,
    frechet_distance,
    load_digits_pipeline,
    make_dataset,
)


@pytest.fixture(scope="module")
def pipeline():
    return load_digits_pipeline()


@pytest.fixture(scope="module")
def real():
    """Real digits as PIL images, and their labels."""
    data = load_digits()
    return DigitsPipeline.decode(torch.tensor(data.images).unsqueeze(1) / 8 - 1), data.target.tolist()


def prompts(number):
    return [f"a handwritten {i % 10}" for i in range(number)]


def draw(pipeline, number=4, seed=0, **arguments):
    return pipeline(prompts(number), generator=torch.Generator().manual_seed(seed), **arguments).images


# The pipeline


def test_embedded_model_starts_where_it_should(pipeline):
    """About half of the digits are those asked for. They look like digits all the same: the distance is near that of one
    half of the real digits to the other, 0.31, and far from that of real threes only, 13."""
    images = draw(pipeline, 500)
    assert 0.5 < np.mean(digit_probability(images, digit=[i % 10 for i in range(500)])) < 0.62
    assert frechet_distance(images) < 1.2
    # guidance asks more firmly
    guided = draw(pipeline, 500, guidance_scale=3.0)
    assert np.mean(digit_probability(guided, digit=[i % 10 for i in range(500)])) > 0.9
    assert pipeline.transformer.dtype == torch.float32
    assert not pipeline.transformer.training


def test_the_embedded_files_are_small():
    sizes = [file.stat().st_size for file in digits.digits_path().rglob("*") if file.is_file()]
    assert sum(sizes) < 1e6
    assert str(digits.digits_path()) == resolve_model("trl_credit:digits") == embedded_model_path("trl_credit:digits")


@pytest.mark.parametrize("guidance", [1.0, 2.5])
def test_steps_against_the_definition(pipeline, guidance):
    """The probability flow, written out in float64."""
    noise = torch.randn(3, 1, 8, 8, generator=torch.Generator().manual_seed(1))
    found = pipeline(
        prompts(3), num_inference_steps=5, guidance_scale=guidance, latents=noise, output_type="latent"
    ).images
    model = DigitDenoiser(**{k: v for k, v in pipeline.transformer.config.items() if not k.startswith("_")}).double()
    model.load_state_dict(pipeline.transformer.state_dict())
    uniform = torch.linspace(1, 0, 6, dtype=torch.float64)
    levels = 3 * uniform / (1 + 2 * uniform)
    x = noise.double()
    for level, following in itertools.pairwise(levels):
        at = torch.full((3,), 1000 * level, dtype=torch.float64)
        conditional = model(x, at, torch.arange(3)).sample
        velocity = conditional
        if guidance > 1:
            unconditional = model(x, at, torch.full((3,), 10)).sample
            velocity = unconditional + guidance * (conditional - unconditional)
        x = x - (level - following) * velocity
    torch.testing.assert_close(found.double(), x.detach(), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_how_the_denoiser_is_called(pipeline, guidance, monkeypatch):
    """By keyword, once a step, with the scheduler's latents as they are: this is what a recorder relies on."""
    calls, results, forward, step = [], [], pipeline.transformer.forward, pipeline.scheduler.step

    def recorded(*args, **kwargs):
        calls.append((args, kwargs))
        return forward(*args, **kwargs)

    def stepped(*args, **kwargs):
        results.append(step(*args, **kwargs))
        return results[-1]

    monkeypatch.setattr(pipeline.transformer, "forward", recorded)
    monkeypatch.setattr(pipeline.scheduler, "step", stepped)
    start = torch.randn(4, 1, 8, 8)
    final = pipeline(prompts(4), 6, guidance, latents=start, output_type="latent").images
    latents = [start] + [result[0] for result in results]
    assert torch.equal(final, latents[-1])
    assert len(calls) == 6
    for (args, kwargs), x, t in zip(calls, latents, pipeline.scheduler.timesteps, strict=False):
        copies = 2 if guidance > 1 else 1
        assert not args
        assert torch.equal(kwargs["hidden_states"], torch.cat([x] * copies))
        assert (kwargs["hidden_states"] is x) == (copies == 1)
        assert torch.equal(kwargs["timestep"], t.expand(4 * copies))
        assert kwargs["class_labels"].tolist() == [10] * (4 * copies - 4) + [0, 1, 2, 3]


def test_kinds_of_output(pipeline):
    latents = draw(pipeline, output_type="latent")
    pixels = draw(pipeline, output_type="pt")
    array = draw(pipeline, output_type="np")
    images = draw(pipeline)
    assert latents.shape == pixels.shape == (4, 1, 8, 8)
    assert array.shape == (4, 8, 8, 1)
    assert [(image.mode, image.size) for image in images] == [("L", (8, 8))] * 4
    torch.testing.assert_close(pixels, (latents / 2 + 0.5).clamp(0, 1))
    np.testing.assert_array_equal(array[..., 0], pixels[:, 0].numpy())
    np.testing.assert_allclose(np.stack(images) / 255, array[..., 0], atol=0.51 / 255)
    as_tuple = pipeline("3", generator=torch.Generator().manual_seed(0), return_dict=False)
    assert isinstance(as_tuple, tuple)
    assert isinstance(as_tuple[0][0], Image.Image)
    # pixels as a classifier reads them are the latents again, up to rounding to bytes
    torch.testing.assert_close(digits.pixels_of(images), latents.clamp(-1, 1), atol=0.51 / 127.5, rtol=0)


def test_several_images_for_each_prompt(pipeline):
    noise = torch.randn(6, 1, 8, 8)
    several = pipeline(["3", "7"], num_images_per_prompt=3, latents=noise, output_type="latent").images
    repeated = pipeline(["3"] * 3 + ["7"] * 3, latents=noise, output_type="latent").images
    assert torch.equal(several, repeated)
    generators = [torch.Generator().manual_seed(i) for i in range(2)]
    each = pipeline(["3", "7"], generator=generators, output_type="latent").images
    alone = pipeline("7", generator=torch.Generator().manual_seed(1), output_type="latent").images
    torch.testing.assert_close(each[1:], alone)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt": "a cat"}, "the prompt 'a cat' has 0"),
        ({"prompt": ["a 3", "a 10"]}, "the prompt 'a 10' has 2"),
        ({"prompt": ["a 3", None]}, "the prompt None has 0"),
        ({"prompt": "a handwritten \u0663"}, "has 0"),
        ({"prompt": "3", "output_type": "jpg"}, "`output_type` must be pil, np, pt or latent, got 'jpg'"),
        ({"prompt": "3", "latents": torch.zeros(2, 1, 8, 8)}, r"`latents` must have the shape \(1, 1, 8, 8\), got \(2"),
    ],
)
def test_wrong_arguments(pipeline, arguments, message):
    with pytest.raises(ValueError, match=message):
        pipeline(**arguments)


def test_prompts():
    assert [digit_of(text) for text in ("a handwritten 3", "3", " 0.")] == [3, 3, 0]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_saved_and_loaded(pipeline, tmp_path, dtype):
    pipeline.save_pretrained(tmp_path)
    again = DigitsPipeline.from_pretrained(tmp_path, dtype=dtype)
    assert again.transformer.dtype == dtype
    assert type(again.scheduler) is type(pipeline.scheduler)
    assert again.scheduler.config.shift == 3
    images, expected = draw(again), draw(pipeline)
    if dtype == torch.float32:
        assert images == expected
        assert draw(load_digits_pipeline(tmp_path)) == expected
    else:
        np.testing.assert_allclose(np.stack(images) / 1.0, np.stack(expected) / 1.0, atol=60)
    index = json.loads((tmp_path / "model_index.json").read_text())
    assert index["transformer"] == ["trl_credit.toy.digits", "DigitDenoiser"]
    with pytest.raises(ValueError, match=r"`model`: .* is a pipeline of diffusers, .* set `trainer: diffusion`"):
        LocalModel.find(str(tmp_path))


# The denoiser


def test_rows_do_not_depend_on_each_other(pipeline):
    x, labels = torch.randn(5, 1, 8, 8), torch.tensor([0, 3, 3, 9, 10])
    times = torch.tensor([0.0, 1.0, 500.0, 999.0, 1000.0])
    with torch.no_grad():
        together = pipeline.transformer(x, times, labels).sample
        for i in range(5):
            alone = pipeline.transformer(x[i : i + 1], times[i], labels[i : i + 1], return_dict=False)[0]
            torch.testing.assert_close(together[i : i + 1], alone, atol=1e-5, rtol=1e-5)
    # label and time matter
    assert not torch.allclose(together[1], pipeline.transformer(x, times, labels.flip(0)).sample[1], atol=1e-2)
    assert not torch.allclose(together[1], pipeline.transformer(x, times.flip(0), labels).sample[1], atol=1e-2)


def test_gradient_checkpointing_changes_nothing():
    torch.manual_seed(0)
    model = DigitDenoiser(width=16, depth=2)
    x, times, labels = torch.randn(3, 1, 8, 8), torch.tensor([10.0, 500.0, 900.0]), torch.tensor([1, 2, 10])
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.enable_gradient_checkpointing()
            assert model.is_gradient_checkpointing
        model.zero_grad()
        model(hidden_states=x, timestep=times, class_labels=labels).sample.square().mean().backward()
        gradients.append([parameter.grad.clone() for parameter in model.parameters()])
    for plain, checkpointed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, checkpointed)


TARGETS = ["to_condition", "to_hidden", "to_residual"]


def test_lora_with_peft():
    model = get_peft_model(load_digits_pipeline().transformer, LoraConfig(r=4, target_modules=TARGETS))
    trained = {name for name, parameter in model.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 3 * len(TARGETS)
    model(torch.randn(2, 1, 8, 8), torch.tensor([1.0, 2.0]), torch.tensor([1, 2])).sample.sum().backward()
    assert any(parameter.grad.abs().sum() > 0 for parameter in model.parameters() if parameter.requires_grad)


def test_lora_as_diffusers_saves_it(pipeline, tmp_path):
    trained = load_digits_pipeline()
    trained.transformer.add_adapter(LoraConfig(r=4, target_modules=TARGETS, init_lora_weights=False))
    expected = draw(trained)
    assert expected != draw(pipeline)
    DigitsPipeline.save_lora_weights(
        tmp_path,
        get_peft_model_state_dict(trained.transformer),
        transformer_lora_adapter_metadata=trained.transformer.peft_config["default"].to_dict(),  # for `lora_alpha`
    )
    again = load_digits_pipeline()
    again.load_lora_weights(tmp_path)
    assert draw(again) == expected


# The task


def test_datasets():
    dataset = make_dataset(25, seed=1)
    assert dataset.column_names == ["prompt", "digit"]
    assert dataset.to_list() == make_dataset(25, seed=1).to_list() != make_dataset(25, seed=2).to_list()
    assert sorted(dataset["digit"][:10]) == sorted(dataset["digit"][10:20]) == list(range(10))
    assert [digit_of(prompt) for prompt in dataset["prompt"]] == list(dataset["digit"])
    assert load_splits("trl_credit:digits", generated_size=25, seed=1)["train"].to_list() == dataset.to_list()
    with pytest.raises(ValueError, match="`size` must be a whole number from 1, got 0"):
        make_dataset(0)
    with pytest.raises(ValueError, match=r"unknown dataset 'trl_credit:digit'\. Did you mean 'trl_credit:digits'"):
        load_splits("trl_credit:digit")
    with pytest.raises(ValueError, match=r"`generated_dataset_config` for 'trl_credit:digits': .*'style'"):
        load_splits("trl_credit:digits", generated_config={"style": "letters"})


def test_unknown_models():
    with pytest.raises(ValueError, match=r"unknown 'trl_credit:digit'\. Did you mean 'trl_credit:digits'"):
        resolve_model("trl_credit:digit")


# Reward and quality


def test_the_judge_knows_real_digits(real):
    images, labels = real
    probabilities = digit_probability(images, digit=labels)
    assert np.mean(np.array(probabilities) > 0.5) > 0.97
    wrong = digit_probability(images, digit=[(label + 1) % 10 for label in labels])
    assert np.mean(wrong) < 0.01
    every = np.array([digit_probability(images[:3], digit=[digit] * 3) for digit in range(10)])
    np.testing.assert_allclose(every.sum(0), 1, atol=1e-6)


def test_the_reward_reads_other_modes(real):
    images = real[0][:4]
    expected = digit_probability(images, digit=[0, 1, 2, 3])
    assert digit_probability([i.convert("RGB") for i in images], digit=[0, 1, 2, 3], prompts=[""] * 4) == expected
    assert digit_probability([], digit=[]) == []


@pytest.mark.parametrize(
    ("images", "digit", "message"),
    [
        (None, [1], "needs `images`, and this run makes text: train an image model"),
        ([Image.new("L", (8, 8)), None], [1, 2], "completion 1 has None"),
        (["a.png"], [1], "completion 0 has str"),
        ([Image.new("L", (16, 8))], [1], "8x8 pixels, but completion 0 has 16x8"),
        ([Image.new("L", (8, 8))], [10], "`digit` of completion 0 must be a whole number from 0 to 9, got 10"),
        ([Image.new("L", (8, 8))], ["3"], "`digit` of completion 0 must be .*got '3'"),
    ],
)
def test_wrong_images(images, digit, message):
    with pytest.raises(ValueError, match=message):
        digit_probability(images, digit=digit)


def test_frechet_distance_against_scipy(real):
    images, _ = real
    pixels = load_digits().images.reshape(-1, 64) / 8 - 1
    for part in (images[:50], images[:900], [image for image, label in zip(*real, strict=True) if label == 3]):
        own = np.stack([np.asarray(image) for image in part]).reshape(-1, 64) / 127.5 - 1
        covariances = np.cov(pixels.T), np.cov(own.T)
        with warnings.catch_warnings(action="ignore"):  # the digits' outermost pixels do not vary
            root = sqrtm(covariances[0] @ covariances[1]).real
        expected = ((pixels.mean(0) - own.mean(0)) ** 2).sum() + np.trace(sum(covariances) - 2 * root)
        assert frechet_distance(part) == pytest.approx(expected, abs=1e-3)
    assert abs(frechet_distance(images)) < 1e-3
    assert frechet_distance([image for image, label in zip(*real, strict=True) if label == 3]) > 10
    assert frechet_distance(images[:2]) > 0
    with pytest.raises(ValueError, match="at least 2 images, got 1"):
        frechet_distance(images[:1])


def test_moments_are_those_of_the_digits():
    _, mean, covariance = digits._judge_and_moments()
    pixels = build_digits.load_digits()[0].flatten(1).numpy()
    np.testing.assert_allclose(mean, pixels.mean(0), atol=1e-5)
    np.testing.assert_allclose(covariance, np.cov(pixels.T), atol=1e-5)


def test_random_numbers_are_left_alone(real):
    """What a run samples must not depend on which run of a process loaded the judge."""
    digits._judge_and_moments.cache_clear()
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    draw(load_digits_pipeline())
    digit_probability(real[0][:2], digit=[1, 2])
    frechet_distance(real[0][:2])
    assert torch.rand(1) == expected


# The build, and what it needs


def test_a_smaller_model_builds_the_same_way(tmp_path):
    def build(batches=60):
        return build_digits.train_denoiser(num_batches=batches, width=16, depth=1, log_every=0)

    model, again = build(), build()
    for name, parameter in model.state_dict().items():
        assert torch.equal(parameter, again.state_dict()[name]), name
    judge, accuracy = build_digits.train_judge(num_batches=200)
    assert accuracy > 0.85
    build_digits.save(model, judge, tmp_path)
    loaded = load_digits_pipeline(tmp_path)
    assert loaded.transformer.dtype == torch.float32
    for name, parameter in loaded.transformer.state_dict().items():
        torch.testing.assert_close(parameter, again.state_dict()[name], atol=1e-3, rtol=1e-3)


def modules_after(code):
    script = f"{code}\nimport sys\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=120, check=True)
    return set(done.stdout.split())


@pytest.mark.slow
def test_what_is_imported():
    """Text users load no diffusers, and training on digits no scikit-learn."""
    assert "diffusers" not in modules_after("import trl_credit.recipe.recipe, trl_credit.trainer.grpo, trl_credit.data")
    code = "from trl_credit.toy.digits import *; print(digit_probability(load_digits_pipeline('3').images, digit=[3]))"
    code = code.replace("load_digits_pipeline('3')", "load_digits_pipeline()('3')")
    assert "sklearn" not in modules_after(code)


def test_without_diffusers(monkeypatch):
    monkeypatch.setitem(sys.modules, "diffusers", None)
    monkeypatch.delitem(sys.modules, "trl_credit.toy.digits")
    with pytest.raises(
        ValueError, match=r"'trl_credit:digits': Image models need diffusers: pip install 'trl-credit\[images\]'"
    ):
        load_splits("trl_credit:digits")
