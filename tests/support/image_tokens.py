"""A tiny random Janus, its tokenizer, and rewards for its images."""

import random
import sys

import torch
from accelerate import PartialState
from datasets import Dataset
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import (
    GenerationConfig,
    JanusConfig,
    JanusForConditionalGeneration,
    JanusVisionConfig,
    JanusVQVAEConfig,
    LlamaConfig,
    PreTrainedTokenizerFast,
)

from trl_credit import ImageTokenGRPOConfig, ImageTokenGRPOTrainer
from trl_credit.image_tokens import JanusImageTokens


CODES, CODEBOOK = 16, 32
# Both are codes, too: a code may equal them
EOS, PAD = 7, 8
BOS, START = 90, 94


def tokenizer() -> PreTrainedTokenizerFast:
    words = {f"w{i}": i for i in range(100) if i not in (EOS, PAD, BOS, START)}
    words |= {"<s>": BOS, "</s>": EOS, "<pad>": PAD, "<begin_of_image>": START}
    plain = Tokenizer(models.WordLevel(words, unk_token="w0"))
    plain.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    plain.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", BOS)])
    return PreTrainedTokenizerFast(
        tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left"
    )


def tiny_janus(seed: int = 0) -> JanusForConditionalGeneration:
    torch.manual_seed(seed)
    text = LlamaConfig(
        vocab_size=100, hidden_size=32, intermediate_size=64, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=4, max_position_embeddings=128, bos_token_id=BOS, eos_token_id=EOS, pad_token_id=PAD,
        initializer_range=0.2,
    )  # fmt: skip
    vision = JanusVisionConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=4, image_size=32, patch_size=8, projection_dim=32,
        num_image_tokens=CODES, mlp_ratio=2,
    )  # fmt: skip
    codes = JanusVQVAEConfig(
        embed_dim=8, num_embeddings=CODEBOOK, latent_channels=8, base_channels=32, channel_multiplier=[1, 1],
        num_res_blocks=1, projection_dim=32, image_token_embed_dim=32, num_patches=4, num_hidden_layers=2, hidden_size=32,
    )  # fmt: skip
    model = JanusForConditionalGeneration(
        JanusConfig(
            text_config=text, vision_config=vision, vq_config=codes, image_token_id=93, tie_word_embeddings=False
        )
    )
    model.generation_config = GenerationConfig(eos_token_id=EOS, bos_token_id=BOS, pad_token_id=PAD)
    model.config.architectures = ["JanusForConditionalGeneration"]
    with torch.no_grad():  # a random head has no opinion: give it some
        for part in (model.model.generation_head, model.model.generation_embeddings, model.model.generation_aligner):
            for parameter in part.parameters():
                parameter.mul_(2.5)
    return model.eval()


def save_tiny_janus(path) -> str:
    tiny_janus().save_pretrained(path)
    tokenizer().save_pretrained(path)
    return str(path)


def image_prompts() -> Dataset:
    """Prompts of uneven lengths. Half of the images should use low codes, the others high ones."""
    prompts = ["w10 w20 w30", "w11", "w12 w22", "w13 w23 w33 w43"]
    return Dataset.from_dict({"prompt": prompts * 4, "want": [True, False, True, False] * 4})


def low_codes(images, completion_ids, want, **_):
    """The share of codes on the wanted side."""
    assert len(images) == len(completion_ids)
    return [sum((code < 16) == low for code in ids) / len(ids) for ids, low in zip(completion_ids, want, strict=True)]


def image_config(path, **settings) -> ImageTokenGRPOConfig:
    return ImageTokenGRPOConfig(
        str(path),
        **{
            "per_device_train_batch_size": 8,
            "num_generations": 4,
            "gradient_accumulation_steps": 1,
            "max_steps": 2,
            "learning_rate": 5e-3,
            "lr_scheduler_type": "constant",
            "bf16": False,
            "loss_type": "grpo",
            "beta": 0.0,
            "max_completion_length": CODES,
            "logging_steps": 1,
            "report_to": [],
            "save_strategy": "no",
            "disable_tqdm": True,
            "use_cpu": True,
        }
        | settings,
    )


def placed_codes(self, input_ids=None, **settings):
    """Generates, and returns codes that depend on the prompt and the place among all processes' images only."""
    assert JanusImageTokens.sampled(self, input_ids=input_ids, **settings).shape[1] == input_ids.size(1) + CODES
    first = PartialState().process_index * len(input_ids)
    rows = []
    for place, ids in enumerate(input_ids.tolist(), first):
        rng = random.Random(f"{[i for i in ids if i != PAD]}/{place}")
        rows.append([rng.randrange(CODEBOOK) for _ in range(CODES)])
    return torch.cat([input_ids, torch.tensor(rows)], 1)


def train_and_save(path: str, output: str, processes: int) -> None:
    """One of the processes of a run whose global batch does not depend on their number."""
    args = image_config(
        output,
        credit={"method": "gcpo", "negative_prompt": "pad"},
        per_device_train_batch_size=8 // processes,
        optim="sgd",
        learning_rate=0.1,
        max_steps=3,
        num_iterations=2,
        beta=0.1,
    )
    trainer = ImageTokenGRPOTrainer(path, low_codes, args, image_prompts())
    JanusImageTokens.sampled, JanusImageTokens.generate = JanusImageTokens.generate, placed_codes
    trainer.train()
    trainer.save_model(output)
    if trainer.is_world_process_zero():
        trainer.state.save_to_json(f"{output}/state.json")


if __name__ == "__main__":
    train_and_save(sys.argv[1], sys.argv[2], int(sys.argv[3]))
