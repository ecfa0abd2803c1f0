"""Builds the quickstart's embedded model from scratch: `python -m trl_credit.toy.build_model OUTPUT_DIR`.

A Qwen2-type model of about 0.9M parameters with one token per character, pre-trained on written-out sums
([`trl_credit.toy.arithmetic`]) of two to five numbers in every style, mostly three and plain. Each step of a solution
(and the copy of the sum, if any) is wrong with probability 0.2, so the model starts near 64 % on three numbers and has
something to learn. A fifth of the prompts begin with the negative mark. Their steps are wrong with probability 0.7, so
the model also learns what a negative prompt asks for.

The build is deterministic: with one thread, a seed gives the same weights on the same type of machine.
"""

import argparse
import random
import string
from pathlib import Path
from typing import Any

import torch
from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen2Tokenizer, get_cosine_schedule_with_warmup
from transformers.convert_slow_tokenizer import bytes_to_unicode

from .arithmetic import NEGATIVE_MARK, make_problem, prompt_of, written_solution


CHARACTERS = string.digits + string.punctuation + string.ascii_letters + " \n"
STEP_ERROR_RATE = 0.2
NEGATIVE_SHARE = 0.2
NEGATIVE_STEP_ERROR_RATE = 0.7
# Shares of batches
STYLE_SHARES = {"plain": 0.45, "letters": 0.25, "words": 0.15, "copy": 0.15}
NUM_TERMS_SHARES = {3: 0.7, 2: 0.1, 4: 0.1, 5: 0.1}


def build_tokenizer() -> Qwen2Tokenizer:
    """Qwen2's byte-level tokenizer without merges: one token per character, plus `<pad>`, `<eos>` and `<unk>`."""
    alphabet = bytes_to_unicode()
    characters = [alphabet[ord(character)] for character in CHARACTERS]
    vocabulary = {token: i for i, token in enumerate(["<pad>", "<eos>", "<unk>", *characters])}
    return Qwen2Tokenizer(
        vocab=vocabulary,
        merges=[],
        pad_token="<pad>",
        eos_token="<eos>",
        unk_token="<unk>",
        padding_side="left",
    )


def is_embedded_tokenizer(tokenizer: Any) -> bool:
    """True for the embedded model's tokenizer, so for the model itself and what was trained from it."""
    ours = build_tokenizer()
    return len(tokenizer) == len(ours) and tokenizer.get_vocab() == ours.get_vocab()


def sample_text(rng: random.Random, num_terms: int = 3, style: str = "plain") -> tuple[str, str]:
    """Draws a pre-training example as (prompt, completion)."""
    terms = make_problem(rng, num_terms)
    negative = rng.random() < NEGATIVE_SHARE
    error_rate = NEGATIVE_STEP_ERROR_RATE if negative else STEP_ERROR_RATE
    wrong = {i for i in range(num_terms - 1) if rng.random() < error_rate}
    wrong_copy = style == "copy" and rng.random() < error_rate
    return NEGATIVE_MARK * negative + prompt_of(terms, style), written_solution(terms, rng, wrong, style, wrong_copy)


def build_model(
    *,
    num_batches: int = 3600,
    batch_size: int = 64,
    hidden_size: int = 128,
    num_layers: int = 4,
    learning_rate: float = 2e-3,
    num_terms: int | None = None,
    style: str | None = None,
    seed: int = 0,
    log_every: int = 100,
) -> tuple[Qwen2ForCausalLM, Qwen2Tokenizer]:
    """Pre-trains the model. Returns it in float32, with its tokenizer.

    Each batch has one style and one number of terms, drawn at random unless `style` or `num_terms` is given.
    """
    torch.manual_seed(seed)
    rng = random.Random(seed)
    tokenizer = build_tokenizer()
    config = Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=num_layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = Qwen2ForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=0.01)
    schedule = get_cosine_schedule_with_warmup(optimizer, num_batches // 20, num_batches)

    for batch in range(num_batches):
        batch_style = style or rng.choices(list(STYLE_SHARES), list(STYLE_SHARES.values()))[0]
        batch_terms = num_terms or rng.choices(list(NUM_TERMS_SHARES), list(NUM_TERMS_SHARES.values()))[0]
        pairs = [sample_text(rng, batch_terms, batch_style) for _ in range(batch_size)]
        inputs = tokenizer(
            [prompt + completion + tokenizer.eos_token for prompt, completion in pairs],
            padding=True,
            padding_side="right",
            return_tensors="pt",
        )
        labels = inputs.input_ids.masked_fill(inputs.attention_mask == 0, -100)
        for row, (prompt, _) in enumerate(pairs):
            labels[row, : len(prompt)] = -100
        loss = model(input_ids=inputs.input_ids, attention_mask=inputs.attention_mask, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if log_every and (batch + 1) % log_every == 0:
            print(f"batch {batch + 1}/{num_batches}: loss {loss.item():.3f}", flush=True)
    return model.eval(), tokenizer


def save(model: Qwen2ForCausalLM, tokenizer: Qwen2Tokenizer, output_dir: Path) -> None:
    """Saves the model (in bfloat16) and the tokenizer."""
    model.to(torch.bfloat16).save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num_batches", type=int, default=3600)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    model, tokenizer = build_model(num_batches=args.num_batches, seed=args.seed)
    save(model, tokenizer, args.output_dir)
    print(f"saved {model.num_parameters():,} parameters to {args.output_dir}")


if __name__ == "__main__":
    main()
