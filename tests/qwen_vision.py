"""A tiny model of Qwen2-VL's kind: images of several sizes, patches in one row each, and multimodal token types."""

import torch
from datasets import Dataset, Features, Image, Sequence, Value
from PIL import Image as PILImage
from transformers import (
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
    Qwen2VLImageProcessorPil,
    Qwen2VLProcessor,
)

from trl_credit.toy.build_model import build_tokenizer


SPECIAL = ["<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}:"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endif %};{% endfor %}{% if add_generation_prompt %}assistant:{% endif %}"
)


class NoVideo:
    """Stands in for the video processor, which needs torchvision even where there are no videos."""

    merge_size = 2


class Processor(Qwen2VLProcessor):
    def check_argument_for_proper_class(self, *args):
        return None


def tiny_processor():
    tokenizer = build_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": SPECIAL})
    return Processor(
        image_processor=Qwen2VLImageProcessorPil(
            patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 64, "longest_edge": 1024}
        ),
        tokenizer=tokenizer,
        video_processor=NoVideo(),
        chat_template=CHAT_TEMPLATE,
    )


def tiny_model():
    processor = tiny_processor()
    tokenizer = processor.tokenizer
    ids = dict(zip(SPECIAL, tokenizer.convert_tokens_to_ids(SPECIAL), strict=True))
    torch.manual_seed(0)
    config = Qwen2VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "intermediate_size": 64,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
            "max_position_embeddings": 512,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]},
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "depth": 1,
            "embed_dim": 16,
            "hidden_size": 32,
            "num_heads": 2,
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"],
        vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"],
    )
    return Qwen2VLForConditionalGeneration(config), processor


def make_dataset(size=8, white=False):
    """One to two pictures a row, of different sizes."""
    rows = [
        {
            "prompt": [{"role": "user", "content": f"see {row}?"}],
            "images": [PILImage.new("RGB", (8 + 8 * (row % 3), 16), (255, 255, 255) if white else (30 * row, 90, 10))]
            * (1 + row % 2),
        }
        for row in range(size)
    ]
    prompt = [{"role": Value("string"), "content": Value("string")}]
    return Dataset.from_list(rows, features=Features({"prompt": prompt, "images": Sequence(Image())}))
