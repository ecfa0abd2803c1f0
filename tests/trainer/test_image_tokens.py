"""Training an image-token model."""

import json

import pytest
import torch
from helpers import ROOT
from peft import LoraConfig, get_peft_model
from PIL import Image
from support.image_tokens import (
    BOS,
    CODEBOOK,
    CODES,
    EOS,
    START,
    image_config,
    image_prompts,
    low_codes,
    save_tiny_janus,
    tiny_janus,
)
from support.image_tokens import PAD as PAD_ID
from support.image_tokens import tokenizer as make_tokenizer
from transformers import JanusForConditionalGeneration

from trl_credit import ImageTokenGRPOTrainer
from trl_credit.train import main


PAD = {"method": "gcpo", "negative_prompt": "pad"}
CREDIT = {
    "uniform": "uniform",
    "gcpo": PAD,
    "gcpo_full": PAD | {"divergence": "full"},
    "dgpo": {"method": "dgpo", "temperature": 1e-6},
}


@pytest.fixture(scope="module")
def janus(tmp_path_factory):
    return save_tiny_janus(tmp_path_factory.mktemp("janus"))


def trainer_of(path, model=None, **settings):
    arguments = {
        name: settings.pop(name) for name in ("peft_config", "reward_funcs", "processing_class") if name in settings
    }
    return ImageTokenGRPOTrainer(
        **{
            "model": tiny_janus() if model is None else model,
            "reward_funcs": low_codes,
            "args": image_config(path, **settings),
            "train_dataset": image_prompts(),
            "processing_class": make_tokenizer(),
        }
        | arguments
    )


def logged(trainer):
    return [row for row in trainer.state.log_history if "reward" in row]


@pytest.mark.parametrize("name", CREDIT)
def test_every_method_trains_only_the_language_model(name, tmp_path):
    trainer = trainer_of(tmp_path, credit=CREDIT[name], num_iterations=2, max_steps=4)
    before = {key: value.clone() for key, value in trainer.model.state_dict().items()}
    trainer.train()
    moved = {key for key, value in trainer.model.state_dict().items() if not torch.equal(value, before[key])}
    assert moved
    assert all(key.startswith("model.language_model.") for key in moved)
    rows = logged(trainer)
    assert [row["completions/clipped_ratio"] for row in rows] == [0.0] * len(rows)
    assert all(row["completions/min_length"] == CODES for row in rows)
    if name != "uniform":
        assert rows[-1]["credit/weight_std"] > 0.05


def test_what_is_saved_loads_in_the_plain_class(janus, tmp_path):
    trainer = trainer_of(tmp_path, model=janus, credit=PAD)
    trainer.train()
    trainer.save_model(tmp_path / "saved")
    plain = JanusForConditionalGeneration.from_pretrained(tmp_path / "saved")
    assert type(plain) is JanusForConditionalGeneration
    assert plain.config.architectures == ["JanusForConditionalGeneration"]
    trained = trainer.model.state_dict()
    assert set(trained) == set(plain.state_dict())
    assert all(torch.equal(value, trained[key]) for key, value in plain.state_dict().items())


def test_an_adapter_stays_in_the_language_model(janus, tmp_path):
    trainer = trainer_of(tmp_path, model=janus, credit=PAD, peft_config=LoraConfig(target_modules=["q_proj", "v_proj"]))
    trainer.train()
    names = [name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad]
    assert names
    assert all("language_model" in name for name in names)
    trainer.save_model(tmp_path / "saved")
    from peft import PeftModel

    loaded = PeftModel.from_pretrained(JanusForConditionalGeneration.from_pretrained(janus), tmp_path / "saved")
    trained = trainer.model.state_dict()
    assert all(torch.equal(value, trained[key]) for key, value in loaded.state_dict().items() if "lora" in key)


def test_kl_penalty_has_a_reference_of_its_own(janus, tmp_path):
    trainer = trainer_of(tmp_path, model=janus, credit=PAD, beta=0.03, max_steps=3)
    trainer.train()
    kl = [row["kl"] for row in logged(trainer)]
    assert abs(kl[0]) < 1e-6 < kl[-1]


def test_gradient_checkpointing_changes_nothing(tmp_path):
    norms = []
    for on in (False, True):
        trainer = trainer_of(tmp_path, credit=PAD, gradient_checkpointing=on)
        trainer.train()
        norms.append([row["grad_norm"] for row in logged(trainer)])
    assert norms[0] == pytest.approx(norms[1], rel=1e-5)


def test_rewards_see_each_image_once(tmp_path):
    calls = []

    def reward(images, prompts, completions, completion_ids, want, **_):
        calls.append((images, completion_ids))
        assert all(isinstance(image, Image.Image) for image in images)
        assert set(completions) == {"<image>"}
        return [float(sum(ids)) for ids in completion_ids]

    trainer = trainer_of(tmp_path, reward_funcs=[reward, low_codes], max_steps=1)
    view, decoded = trainer.model, []
    decode = type(view).decode_codes
    type(view).decode_codes = lambda self, codes: decoded.append(len(codes)) or decode(self, codes)
    try:
        trainer.train()
    finally:
        type(view).decode_codes = decode
    ((images, codes),) = calls
    assert sum(decoded) == len(images) == 8
    assert len({id(image) for image in images}) == 8
    assert any(EOS in ids[:-1] for ids in codes)  # and it did not end the image
    assert {len(ids) for ids in codes} == {CODES}
    assert max(max(ids) for ids in codes) < CODEBOOK


def test_it_learns(tmp_path):
    trainer = trainer_of(
        tmp_path,
        credit=PAD,
        max_steps=30,
        per_device_train_batch_size=32,
        num_generations=8,
        learning_rate=1e-3,
        guidance_scale=1.0,
    )
    trainer.train()
    rewards = [row["reward"] for row in logged(trainer)]
    assert sum(rewards[-3:]) / 3 > sum(rewards[:3]) / 3 + 0.1


def test_conversations_are_rendered_as_the_authors_do(janus, tmp_path):
    trainer = trainer_of(tmp_path, model=janus, processing_class=None)
    tokenizer = trainer.processing_class
    chat = [{"role": "user", "content": "a cat"}]
    text = tokenizer.apply_chat_template(chat, add_generation_prompt=True, tokenize=False)
    assert text == "<s><|User|>: a cat\n\n<|Assistant|>:"
    ids, images, _ = trainer.tokenize_prompts(["w10 w20", "w10 <begin_of_image>"])
    assert images is None
    assert ids == [[BOS, 10, 20, START], [BOS, 10, START]]


def test_pad_is_the_unguided_branch(tmp_path):
    trainer = trainer_of(tmp_path, credit=PAD, max_steps=1, shuffle_dataset=False)
    trainer.train()
    batch = trainer._buffered_inputs[0]
    for row in range(8):
        own = batch["prompt_ids"][row][batch["prompt_mask"][row].bool()]
        negative = batch["negative_prompt/pad/ids"][row][batch["negative_prompt/pad/mask"][row].bool()]
        assert negative.tolist() == [BOS, *[PAD_ID] * (len(own) - 2), START]
        assert torch.equal(negative, trainer.model.null_prompt(own[None])[0])


def test_an_adapter_of_the_users_own_is_refused(janus, tmp_path):
    with pytest.raises(ValueError, match="`exclude_modules` cannot be set"):
        trainer_of(tmp_path, peft_config=LoraConfig(target_modules=["q_proj"], exclude_modules=["k_proj"]))
    model = get_peft_model(tiny_janus(), LoraConfig(target_modules=["q_proj"]))
    with pytest.raises(ValueError, match="`model` has an adapter"):
        trainer_of(tmp_path, model=model)


def test_dynamic_sampling_keeps_images_and_codes_together(tmp_path):
    def reward(images, completion_ids, **_):
        view = trainer.model
        assert [image.tobytes() for image in images] == [
            image.tobytes() for image in view.images_of(torch.tensor(completion_ids))
        ]
        return [float(ids[0] % 2) for ids in completion_ids]

    trainer = trainer_of(tmp_path, reward_funcs=reward, credit=PAD, dynamic_sampling=True)
    trainer.train()
    assert trainer.state.global_step == 2


def test_resuming_reproduces_the_run(tmp_path):
    settings = {"credit": PAD, "num_iterations": 2, "save_strategy": "steps", "save_steps": 3, "max_steps": 5}
    whole = trainer_of(tmp_path / "run", **settings)
    whole.train()
    again = trainer_of(tmp_path / "run", **settings)
    again.train(resume_from_checkpoint=str(tmp_path / "run" / "checkpoint-3"))
    state = whole.model.state_dict()
    assert all(torch.equal(value, state[key]) for key, value in again.model.state_dict().items())


def test_the_shipped_recipe_trains(janus, tmp_path):
    rows = tmp_path / "prompts.jsonl"
    rows.write_text("".join(json.dumps({"Prompt": f"w1{i}"}) + "\n" for i in range(4)))
    options = {
        "model_name_or_path": janus,
        "dataset_name": rows,
        "reward_funcs": "trl_credit.rewards.images.incompressibility",
        "max_completion_length": CODES,
        "use_cpu": "true",
        "bf16": "false",
        "dtype": "float32",
        "max_steps": 1,
        "per_device_train_batch_size": 8,
        "num_generations": 4,
        "output_dir": tmp_path / "out",
    }
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    main(["--config", str(ROOT / "recipes/janus-pro-7b/gcpo.yaml"), *words])
    JanusForConditionalGeneration.from_pretrained(tmp_path / "out")
