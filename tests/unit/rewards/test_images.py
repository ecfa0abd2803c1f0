"""Rewards that judge images: JPEG sizes against Pillow, CLIP scores against float64, one image and one prompt at a time."""

import io
import pickle

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    AutoImageProcessor,
    AutoTokenizer,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
    Qwen2Config,
)
from transformers.integrations.deepspeed import (
    HfDeepSpeedConfig,
    is_deepspeed_zero3_enabled,
    unset_hf_deepspeed_config,
)

from trl_credit.rewards import IMAGE_REWARD_FACTORIES, IMAGE_REWARDS, build_reward, judges_images, required_columns
from trl_credit.rewards import images as module
from trl_credit.rewards.images import compressibility, incompressibility, prompt_text


WORDS = ["<pad>", "<bos>", "<eos>", "<unk>", "a", "red", "green", "cat", "dog", "on", "the", "moon"]
PROMPTS = ["a red cat", "a dog on the moon on the moon", "green", "a red cat", "never heard", "a " * 40]
WIDTH = 24


def picture(width, height, seed, mode="RGB"):
    generator = np.random.default_rng(seed)
    # smooth and noisy parts
    low = Image.fromarray(generator.integers(0, 256, (4, 4, 3), dtype=np.uint8)).resize((width, height))
    noise = generator.normal(0, 10 * (seed + 1), (height, width, 3))
    return Image.fromarray((np.asarray(low) + noise).clip(0, 255).astype(np.uint8)).convert(mode)


IMAGES = [
    picture(32, 32, 0),
    picture(48, 32, 1),
    picture(8, 8, 2, "L"),
    picture(20, 90, 3, "RGBA"),
    picture(64, 64, 4, "P"),
    picture(33, 31, 5, "1"),
]


@pytest.fixture(scope="module")
def clip_folder(tmp_path_factory):
    """A tiny CLIP with random weights."""
    folder = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    size = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4}
    config = CLIPConfig(
        text_config={
            **size,
            "vocab_size": len(WORDS),
            "max_position_embeddings": 12,
            **{"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0},
        },
        vision_config={**size, "image_size": 32, "patch_size": 8},
        projection_dim=WIDTH,
        logit_scale_init_value=3.1,
    )
    model = CLIPModel(config)
    with torch.no_grad():  # so that embeddings depend on their input, which they hardly do as transformers starts them
        for name, parameter in model.named_parameters():
            if parameter.dim() > 1:
                parameter.normal_(std=0.02 if "position" in name else 0.5)
        model.vision_model.embeddings.class_embedding.zero_()
        model.text_model.embeddings.token_embedding.weight[2] = 0
    model.save_pretrained(folder)
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<bos> $A <eos>", special_tokens=[("<bos>", 1), ("<eos>", 2)]
    )
    specials = {"pad_token": "<pad>", "bos_token": "<bos>", "eos_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **specials).save_pretrained(folder)
    return str(folder)


@pytest.fixture(autouse=True)
def nothing_loaded():
    module._load_clip.cache_clear()
    module._load_head.cache_clear()


def oracle(folder):
    """Normalized embeddings of images and prompts and the temperature, in float64, one at a time and without padding."""
    model = CLIPModel.from_pretrained(folder).double().eval()
    process, tokenizer = AutoImageProcessor.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    of_images, of_texts = [], []
    with torch.no_grad():
        for image in IMAGES:
            pixels = process(image.convert("RGB"), return_tensors="pt")["pixel_values"].double()
            of_images.append(model.get_image_features(pixels).pooler_output[0].numpy())
        for prompt in PROMPTS:
            ids = tokenizer(prompt)["input_ids"]
            ids = ids if len(ids) <= 12 else [*ids[:11], 2]
            of_texts.append(model.get_text_features(torch.tensor([ids])).pooler_output[0].numpy())
    normalized = [np.stack(v) / np.linalg.norm(np.stack(v), axis=1, keepdims=True) for v in (of_images, of_texts)]
    return *normalized, float(np.exp(model.logit_scale.detach()))


# CLIP


@pytest.mark.parametrize("batch_size", [1, 4, 16])
@pytest.mark.parametrize("name", ["clip_score", "pickscore", "hps"])
def test_scores_against_float64(name, batch_size, clip_folder):
    of_images, of_texts, temperature = oracle(clip_folder)
    cosines = (of_images * of_texts).sum(1)
    assert cosines.min() < 0 < cosines.max()  # so that the minimum of CLIPScore is tested
    expected = {"clip_score": 2.5 * cosines.clip(min=0), "pickscore": temperature * cosines, "hps": cosines}[name]
    reward = build_reward({"name": name, "model": clip_folder, "batch_size": batch_size})
    found = reward(images=IMAGES, prompts=PROMPTS, completions=["<image>"] * 6, completion_ids=[[0]] * 6, digit=[1] * 6)
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)
    assert all(type(score) is float for score in found)
    assert reward.__name__ == name
    assert required_columns(reward) == []
    assert reward(images=[], prompts=[]) == []


def head_file(path, width=WIDTH, names=(0, 2, 4, 6, 7)):
    """Random weights in the shape of LAION's head, but narrower."""
    generator = torch.Generator().manual_seed(0)
    widths = [width, 32, 12, 8, 4, 1]
    state = {}
    for place, wide, narrow in zip(names, widths, widths[1:], strict=False):
        state[f"layers.{place}.weight"] = torch.randn(narrow, wide, generator=generator)
        state[f"layers.{place}.bias"] = torch.randn(narrow, generator=generator)
    torch.save(state, path) if path.suffix == ".pth" else save_file(state, path)
    return state


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_aesthetic_against_float64(suffix, clip_folder, tmp_path):
    file = tmp_path / f"head{suffix}"
    state = head_file(file)
    expected = oracle(clip_folder)[0]
    for place in (0, 2, 4, 6, 7):
        weight, bias = (state[f"layers.{place}.{name}"].double().numpy() for name in ("weight", "bias"))
        expected = expected @ weight.T + bias
    reward = build_reward({"name": "aesthetic", "model": clip_folder, "head": str(file), "batch_size": 4})
    np.testing.assert_allclose(reward(images=IMAGES, prompts=PROMPTS), expected[:, 0], rtol=1e-4, atol=1e-4)
    assert reward(images=IMAGES) == reward(images=IMAGES, prompts=[None] * 6)  # prompts are not read
    assert reward(images=[]) == []


def test_the_head_against_the_official_network(tmp_path):
    """The official network, built as its repository builds it, in eval mode."""
    from torch import nn

    layers = nn.Sequential(
        nn.Linear(WIDTH, 32), nn.Dropout(0.2), nn.Linear(32, 12), nn.Dropout(0.2), nn.Linear(12, 8), nn.Dropout(0.1)
    )
    layers.extend([nn.Linear(8, 4), nn.Linear(4, 1)])
    network = nn.Module()
    network.layers = layers
    network.load_state_dict(head_file(tmp_path / "head.pth"))
    scores = x = torch.randn(5, WIDTH)
    for weight, bias in module._load_head(str(tmp_path / "head.pth"), "", WIDTH):
        scores = scores @ weight.T + bias
    torch.testing.assert_close(scores, network.eval().layers(x))


def test_zero_3_leaves_it_whole(clip_folder, monkeypatch):
    """transformers would partition what it loads, and no engine gathers this model."""
    config = HfDeepSpeedConfig({"zero_optimization": {"stage": 3}})
    sharding, load = [], CLIPModel.from_pretrained

    def loads(*args, **kwargs):
        sharding.append(is_deepspeed_zero3_enabled())
        unset_hf_deepspeed_config()  # whatever it was: there is no process group here
        return load(*args, **kwargs)

    monkeypatch.setattr(CLIPModel, "from_pretrained", loads)
    build_reward({"name": "clip_score", "model": clip_folder})(images=IMAGES, prompts=PROMPTS)
    assert sharding == [False]
    assert config.is_zero3()
    unset_hf_deepspeed_config()


def test_loaded_once_and_frozen(clip_folder, tmp_path, monkeypatch):
    head_file(tmp_path / "head.pth")
    loads, load = [], CLIPModel.from_pretrained
    monkeypatch.setattr(CLIPModel, "from_pretrained", lambda *a, **k: loads.append(a) or load(*a, **k))
    specs = [{"name": name, "model": clip_folder} for name in ("clip_score", "pickscore", "hps")]
    specs.append({"name": "aesthetic", "model": clip_folder, "head": str(tmp_path / "head.pth")})
    rewards = [build_reward(spec) for spec in specs]
    assert not loads  # nothing before the first call
    for reward in rewards * 2:
        reward(images=IMAGES, prompts=PROMPTS)
    assert len(loads) == 1
    clip = module._load_clip(rewards[0].keywords["settings"])
    assert not clip.model.training
    assert not any(parameter.requires_grad for parameter in clip.model.parameters())
    assert clip.model.dtype == torch.float32
    other = build_reward({"name": "hps", "model": clip_folder, "dtype": "bfloat16", "device": "cpu"})
    assert (
        np.abs(np.array(other(images=IMAGES, prompts=PROMPTS)) - rewards[2](images=IMAGES, prompts=PROMPTS)).max() < 0.1
    )
    assert len(loads) == 2
    assert module._load_clip(other.keywords["settings"]).model.dtype == torch.bfloat16


def test_prompts_are_embedded_once(clip_folder, monkeypatch):
    seen, embed = [], module._Clip.embed_texts
    monkeypatch.setattr(
        module._Clip, "embed_texts", lambda self, texts, size: seen.append(texts) or embed(self, texts, size)
    )
    build_reward({"name": "hps", "model": clip_folder})(images=IMAGES, prompts=PROMPTS)
    assert seen == [list(dict.fromkeys(PROMPTS))]


def test_random_numbers_are_left_alone(clip_folder):
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    build_reward({"name": "hps", "model": clip_folder})(images=IMAGES, prompts=PROMPTS)
    assert torch.rand(1) == expected


def test_conversations(clip_folder):
    reward = build_reward({"name": "hps", "model": clip_folder})
    chats = [
        [{"role": "system", "content": "Draw."}, {"role": "user", "content": PROMPTS[0]}],
        [
            {"role": "user", "content": "green"},
            {"role": "assistant", "content": "no"},
            {"role": "user", "content": [{"type": "text", "text": PROMPTS[1]}]},
        ],
    ]
    assert reward(images=IMAGES[:2], prompts=chats) == reward(images=IMAGES[:2], prompts=PROMPTS[:2])
    parts = [{"type": "image"}, {"type": "text", "text": "a red"}, {"type": "text", "text": "cat"}]
    assert prompt_text([{"role": "user", "content": parts}]) == "a red cat"


@pytest.mark.parametrize(
    "prompt",
    [
        None,
        7,
        [],
        [{"role": "assistant", "content": "a"}],
        [{"role": "user", "content": [{"type": "image"}]}],
        [{"role": "user", "content": None}],
        ["a cat"],
    ],
)
def test_prompts_without_text(prompt, clip_folder):
    reward = build_reward({"name": "clip_score", "model": clip_folder})
    with pytest.raises(ValueError, match=r"'clip_score' reads prompts as text, or .* but prompt 1 has none"):
        reward(images=IMAGES[:2], prompts=["a cat", prompt])


def test_prompts_are_missing(clip_folder):
    reward = build_reward({"name": "clip_score", "model": clip_folder})
    with pytest.raises(ValueError, match="needs a prompt for each image, but got 0 for 6"):
        reward(images=IMAGES)


# JPEG


@pytest.mark.parametrize("quality", [None, 50])
def test_sizes_against_pillow(quality):
    expected = []
    for image in IMAGES:
        buffer = io.BytesIO()
        image.convert("L" if image.mode == "L" else "RGB").save(buffer, "JPEG", quality=quality or 95)
        expected.append(len(buffer.getvalue()) / 1000)
    argument = {} if quality is None else {"quality": quality}
    assert build_reward({"name": "incompressibility", **argument})(images=IMAGES, prompts=PROMPTS) == expected
    found = build_reward({"name": "compressibility", **argument})(images=IMAGES, prompts=PROMPTS, completions=[""] * 6)
    assert found == [-size for size in expected]
    plain, noisy = Image.new("RGB", (64, 64)), picture(64, 64, 9)
    assert compressibility([plain]) > compressibility([noisy])
    assert build_reward("compressibility") is compressibility
    assert build_reward("incompressibility") is incompressibility


# Awkward input


@pytest.mark.parametrize("name", [*IMAGE_REWARDS, *IMAGE_REWARD_FACTORIES])
def test_without_images(name):
    reward = build_reward(name)
    assert judges_images(reward)
    assert required_columns(reward) == []
    with pytest.raises(ValueError, match=f"'{name}' needs `images`, and this run makes text: .*`trainer: diffusion`"):
        reward(prompts=["a"], completions=["b"])
    for wrong, found in ((None, "None"), ("a.png", "str"), (torch.zeros(3, 8, 8), "Tensor")):
        with pytest.raises(ValueError, match=f"{name}.* needs a PIL image .* completion 1 has {found}"):
            reward(images=[IMAGES[0], wrong], prompts=["a", "b"])
    with pytest.raises(ValueError, match="completion 0 is empty"):
        reward(images=[Image.new("RGB", (0, 8))], prompts=["a"])


def test_names_in_metrics_survive_pickling():
    for name in IMAGE_REWARDS | IMAGE_REWARD_FACTORIES:
        reward = build_reward(name)
        assert reward.__name__ == name
        assert pickle.loads(pickle.dumps(reward)).__name__ == name


def test_which_rewards_judge_images():
    assert judges_images(build_reward({"name": "compressibility", "quality": 50}))
    assert not judges_images(build_reward("accuracy"))
    assert not judges_images(build_reward({"name": "judged", "answer_pattern": "gsm8k"}))


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("compresibility", "unknown reward 'compresibility'. Did you mean 'compressibility'?"),
        ("pickscor", "unknown reward 'pickscor'. Did you mean 'pickscore'?"),
        (
            {"name": "compressibility", "qualty": 3},
            "'compressibility' has no argument 'qualty'. Did you mean 'quality'?",
        ),
        ({"name": "compressibility", "quality": 0}, "'compressibility': `quality` must be between 1 and 100, got 0"),
        ({"name": "compressibility", "images": []}, "'compressibility' has no argument 'images'"),
        ({"name": "clip_score", "modle": "a"}, "'clip_score' has no argument 'modle'. Did you mean 'model'?"),
        ({"name": "clip_score", "head": "a"}, "'clip_score' has no argument 'head'"),
        ({"name": "hps", "model": "./none"}, "'hps': `model`: there is no './none' (looked from"),
        ({"name": "hps", "model": ""}, "'hps': `model` must be a path or a hub id, got ''"),
        ({"name": "hps", "processor": 3}, "'hps': `processor` must be a path or a hub id, got 3"),
        ({"name": "hps", "dtype": "float8"}, "'hps': `dtype`: 'float8' cannot be used. Did you mean 'float"),
        ({"name": "hps", "device": "gpu"}, "'hps': `device`: 'gpu' is not a device"),
        ({"name": "hps", "batch_size": 0}, "'hps': `batch_size` must be at least 1, got 0"),
        ({"name": "aesthetic", "head": "none.pth"}, "'aesthetic': `head`: there is no 'none.pth' (looked from"),
        (
            {"name": "judged", "answer_patern": "x"},
            "'judged' has no argument 'answer_patern'. Did you mean 'answer_pattern'",
        ),
        ({"name": "accuracy", "x": 1}, "'accuracy' has no argument 'x'. It takes none"),
    ],
)
def test_wrong_arguments(spec, message):
    with pytest.raises(ValueError, match="`reward_funcs`: ") as raised:
        build_reward(spec)
    assert message in str(raised.value)


def test_models_that_do_not_load(clip_folder, tmp_path):
    (tmp_path / "empty").mkdir()
    Qwen2Config().save_pretrained(tmp_path / "other")
    for folder, reason in (("empty", "config"), ("other", "it is of the type 'qwen2'")):
        reward = build_reward({"name": "hps", "model": str(tmp_path / folder)})
        with pytest.raises(ValueError, match=f"No CLIP model .* can be loaded from .*{folder}.*{reason}"):
            reward(images=IMAGES, prompts=PROMPTS)


@pytest.mark.parametrize(
    ("names", "width", "message"),
    [
        (
            (0, 3, 6, 9, 11),
            WIDTH,
            "is not LAION's linear head, whose layers are 0, 2, 4, 6, 7: it has layers.0.bias",
        ),
        ((0, 2, 4, 6, 7), 768, "reads embeddings of width 768, but those of `model` have 24"),
    ],
)
def test_heads_that_do_not_fit(names, width, message, clip_folder, tmp_path):
    head_file(tmp_path / "head.pth", width, names)
    reward = build_reward({"name": "aesthetic", "model": clip_folder, "head": str(tmp_path / "head.pth")})
    with pytest.raises(ValueError, match="`head` of 'aesthetic'") as raised:
        reward(images=IMAGES)
    assert message in str(raised.value)


def test_a_head_that_is_none(clip_folder, tmp_path):
    (tmp_path / "head.pth").write_text("not a pickle")
    reward = build_reward({"name": "aesthetic", "model": clip_folder, "head": str(tmp_path / "head.pth")})
    with pytest.raises(ValueError, match=r"`head` of 'aesthetic': .* cannot be loaded"):
        reward(images=IMAGES)
    torch.save([1, 2], tmp_path / "head.pth")
    with pytest.raises(ValueError, match=r"is not LAION's linear head.* it has list"):
        reward(images=IMAGES)
