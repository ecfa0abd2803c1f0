"""GCPO on a vision-language model: which tokens of the answer depend on the image?

The negative prompt is the same question about a white image (`blank_image`), so credit goes to tokens that the image
decides. By default, a tiny random model and a generated task (what colour is the square?) show that it runs, offline
and in seconds. With `--model Qwen/Qwen2.5-VL-3B-Instruct`, the same script trains a real model on a GPU.

    python examples/vision.py [--model MODEL] [--max_steps N]
"""

import argparse
import random

import torch
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    Qwen2Config,
)

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer
from trl_credit.toy.build_model import build_tokenizer


COLORS = {"red": (220, 30, 30), "green": (30, 160, 60), "blue": (40, 60, 220)}
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %};"
    "{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


def tiny_model(seed: int = 0) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """Creates a random LLaVA-type model of about ten thousand parameters, and its processor."""
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    processor = LlavaProcessor(
        image_processor=CLIPImageProcessorPil(
            size={"shortest_edge": 16}, crop_size={"height": 16, "width": 16}, do_center_crop=True
        ),
        tokenizer=tokenizer,
        patch_size=8,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )
    torch.manual_seed(seed)
    config = LlavaConfig(
        vision_config=CLIPVisionConfig(
            hidden_size=16,
            intermediate_size=32,
            num_hidden_layers=2,
            num_attention_heads=2,
            image_size=16,
            patch_size=8,
        ),
        text_config=Qwen2Config(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        ),
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
    )
    return LlavaForConditionalGeneration(config), processor


def make_dataset(size: int = 64, seed: int = 0) -> Dataset:
    """Images of one colour, with the question which colour it is."""
    rng = random.Random(seed)
    rows = []
    for _ in range(size):
        answer = rng.choice(list(COLORS))
        question = "Which colour? Answer with one word: red, green or blue."
        rows.append(
            {
                "prompt": [{"role": "user", "content": question}],
                "image": PILImage.new("RGB", (16, 16), COLORS[answer]),
                "answer": answer,
            }
        )
    features = Features(
        {
            "prompt": [{"role": Value("string"), "content": Value("string")}],
            "image": Image(),
            "answer": Value("string"),
        }
    )
    return Dataset.from_list(rows, features=features)


def names_the_colour(completions, answer, **kwargs) -> list[float]:
    """1.0 for the right colour, plus a little for its letters, so that even a random model has something to learn."""
    texts = [completion[0]["content"].lower() for completion in completions]
    return [
        float(truth in text) + 0.1 * len(set(truth) & set(text)) / len(set(truth))
        for text, truth in zip(texts, answer, strict=True)
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", help="a vision-language model; by default a tiny random one")
    parser.add_argument("--max_steps", type=int, default=5)
    parser.add_argument("--output_dir", default="outputs/vision")
    arguments = parser.parse_args()
    model, processor = (arguments.model, None) if arguments.model else tiny_model()
    on_cpu = not torch.cuda.is_available()
    trainer = CreditGRPOTrainer(
        model=model,
        processing_class=processor,
        reward_funcs=names_the_colour,
        args=CreditGRPOConfig(
            output_dir=arguments.output_dir,
            credit={"method": "gcpo", "negative_prompt": "blank_image"},
            per_device_train_batch_size=8,
            num_generations=8,
            max_completion_length=16,
            max_steps=arguments.max_steps,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            use_cpu=on_cpu,
            bf16=not on_cpu,
        ),
        train_dataset=make_dataset(),
    )
    trainer.train()


if __name__ == "__main__":
    main()
