"""GCPO on image tokens you can look at: an autoregressive model draws 8x8 digits, pixel by pixel.

An image is 64 tokens of five grey levels after a class word (`d3`). A plain Qwen2-type text model learns scikit-learn's
digits with nearly half of the labels wrong, and with `<null>` instead of the class word for one image in seven. Then
reinforcement learning mends the labels; the reward is a small classifier's probability of the digit asked for. GCPO's
negative prompt is `<null>`: credit goes to the pixels that the class word decides.

It needs no trainer of its own, since the model is a text model. For Janus, see docs/image_tokens.md.

    python examples/image_tokens.py [--updates 30] [--seeds 3] [--output outputs/image_tokens]

Pre-training takes about two CPU minutes, then each run about one. It prints a table, and writes a picture of images with
their credit, `credit.png`. It needs `pip install scikit-learn matplotlib`.
"""

import argparse
from pathlib import Path

import torch
from datasets import Dataset
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM, set_seed

from trl_credit import CreditGRPOConfig, CreditGRPOTrainer


LEVELS, PIXELS = 5, 64
WRONG_LABELS, NULL_LABELS = 0.45, 0.15
WORDS = ["<pad>", "<eos>", "<null>", *(f"d{i}" for i in range(10)), *(f"p{i}" for i in range(LEVELS))]
FIRST_DIGIT, FIRST_LEVEL = WORDS.index("d0"), WORDS.index("p0")
CREDIT = {"uniform": "uniform", "gcpo": {"method": "gcpo", "negative_prompt": "column"}}


def build_tokenizer() -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<null>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")


def digits() -> tuple[torch.Tensor, torch.Tensor]:
    """(n, 64) token ids and (n,) labels."""
    data = load_digits()
    levels = (torch.tensor(data.images) / 16 * (LEVELS - 1)).round().long().flatten(1)
    return levels + FIRST_LEVEL, torch.tensor(data.target)


def grey(tokens: torch.Tensor) -> torch.Tensor:
    """(n, 64) token ids -> (n, 64) brightness between -1 and 1."""
    return (tokens - FIRST_LEVEL).clamp(0, LEVELS - 1) / (LEVELS - 1) * 2 - 1


def pretrain(steps: int, batch: int = 64, lr: float = 2e-3) -> Qwen2ForCausalLM:
    set_seed(0)
    model = Qwen2ForCausalLM(
        Qwen2Config(
            vocab_size=len(WORDS), hidden_size=96, intermediate_size=192, num_hidden_layers=3, num_attention_heads=4,
            num_key_value_heads=4, max_position_embeddings=80, bos_token_id=None, eos_token_id=1, pad_token_id=0,
            tie_word_embeddings=True,
        )
    )  # fmt: skip
    images, labels = digits()
    labels = torch.where(torch.rand(len(labels)) < WRONG_LABELS, torch.randint(0, 10, labels.shape), labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, steps)
    for step in range(steps):
        rows = torch.randint(0, len(images), (batch,))
        words = torch.where(torch.rand(batch) < NULL_LABELS, WORDS.index("<null>"), labels[rows] + FIRST_DIGIT)
        ids = torch.cat([words[:, None], images[rows]], 1)
        loss = model(input_ids=ids, labels=torch.cat([torch.full_like(ids[:, :1], -100), ids[:, 1:]], 1)).loss
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 100 == 0:
            print(f"pre-training, step {step} of {steps}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def train_judge(steps: int) -> nn.Module:
    """A small classifier, the reward model."""
    set_seed(0)
    judge = nn.Sequential(nn.Linear(PIXELS, 96), nn.ReLU(), nn.Linear(96, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.AdamW(judge.parameters(), 2e-3, weight_decay=1e-2)
    images, labels = digits()
    pixels = grey(images)
    for _ in range(steps):
        rows = torch.randint(0, len(pixels), (128,))
        noisy = pixels[rows] + 0.15 * torch.randn(128, PIXELS)
        optimizer.zero_grad()
        nn.functional.cross_entropy(judge(noisy), labels[rows]).backward()
        optimizer.step()
    return judge.eval()


def train(credit: str, seed: int, model_path: Path, judge: nn.Module, updates: int, output: Path):
    """Trains once. Returns the reward of each update, and (tokens, weights) of the last update's images."""

    @torch.no_grad()
    def digit(completion_ids, label, **_):
        pixels = grey(torch.tensor(completion_ids))
        return judge(pixels).softmax(-1)[torch.arange(len(label)), torch.tensor(label)].tolist()

    levels = range(FIRST_LEVEL, len(WORDS))
    args = CreditGRPOConfig(
        str(output / f"{credit}-{seed}"),
        credit=CREDIT[credit],
        per_device_train_batch_size=80,
        gradient_accumulation_steps=1,
        num_generations=8,
        max_steps=updates,
        learning_rate=2e-4,
        lr_scheduler_type="constant",
        loss_type="dapo",
        beta=0.0,
        top_k=0,
        max_completion_length=PIXELS,
        generation_kwargs={"suppress_tokens": [i for i in range(len(WORDS)) if i not in levels]},
        seed=seed,
        bf16=False,
        gradient_checkpointing=False,
        use_cpu=True,
        logging_steps=1,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
    )
    data = {"prompt": [f"d{i}" for i in range(10)], "label": list(range(10)), "negative_prompt": ["<null>"] * 10}
    trainer = CreditGRPOTrainer(
        AutoModelForCausalLM.from_pretrained(model_path),
        digit,
        args,
        Dataset.from_dict({name: values * 8 for name, values in data.items()}),
        processing_class=build_tokenizer(),
    )
    shown = {}

    def see(batch, result):
        if result.view is not None:
            shown["images"], shown["weights"] = result.view["completion_ids"], result.weights

    trainer.credit_observers.append(see)
    trainer.train()
    return [row["reward"] for row in trainer.state.log_history if "reward" in row], shown


def draw(images: torch.Tensor, weights: torch.Tensor, path: Path, count: int = 10) -> None:
    """Draws images, and below each the weight of its pixels: white is 1, red is more, blue is less."""
    count = min(count, len(images))
    figure = Figure(figsize=(1.2 * count, 2.6))
    axes = figure.subplots(2, count, squeeze=False)
    for i, row in enumerate(torch.linspace(0, len(images) - 1, count).long().tolist()):
        axes[0, i].imshow(grey(images[row]).view(8, 8), cmap="gray", vmin=-1, vmax=1)
        axes[1, i].imshow(weights[row].view(8, 8), cmap="bwr", vmin=0, vmax=2)
    for axis in axes.flat:
        axis.axis("off")
    figure.suptitle("Images, and the weight of each pixel's token (white 1, red more, blue less)", fontsize=9)
    figure.savefig(path, dpi=150, bbox_inches="tight")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--updates", type=int, default=30)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pretraining_steps", type=int, default=700)
    parser.add_argument("--judge_steps", type=int, default=3000)
    parser.add_argument("--output", type=Path, default=Path("outputs/image_tokens"))
    options = parser.parse_args(argv)
    model_path = options.output / "model"
    if not model_path.exists():
        pretrain(options.pretraining_steps).save_pretrained(model_path)
    judge = train_judge(options.judge_steps)
    rows = []
    for seed in range(options.seeds):
        for credit in CREDIT:
            rewards, shown = train(credit, seed, model_path, judge, options.updates, options.output)
            ends = max(1, min(5, len(rewards) // 2))
            first, last = sum(rewards[:ends]) / ends, sum(rewards[-ends:]) / ends
            rows.append((credit, seed, first, last, sum(rewards) / len(rewards)))
            if credit == "gcpo" and shown:
                draw(shown["images"], shown["weights"], options.output / "credit.png")
    print(f"\n{'method':8} {'seed':>4} {'before':>7} {'after':>7} {'mean':>7}")
    for credit, seed, first, last, mean in rows:
        print(f"{credit:8} {seed:4d} {first:7.3f} {last:7.3f} {mean:7.3f}")
    print(f"\nBefore and after are means over {ends} updates. Credit: {options.output / 'credit.png'}")


if __name__ == "__main__":
    main()
