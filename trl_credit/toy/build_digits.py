"""Builds the embedded image model from scratch: `python -m trl_credit.toy.build_digits OUTPUT_DIR`.

A flow-matching model ([`trl_credit.toy.digits`]) is pre-trained on scikit-learn's 1,797 digits of 8x8 pixels. 45 % of the
images get a random label, so the model draws the digit asked for about 60 % of the time; 10 % of the labels of a batch
are dropped, for classifier-free guidance. A classifier, the reward, is trained on four fifths of the digits with their
true labels. The mean and covariance of the digits are stored beside it, so only this script needs scikit-learn.

The build is deterministic: with one thread, a seed gives the same weights on the same type of machine. It takes about two
minutes.
"""

import argparse
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import nn

from .digits import (
    _JUDGE_FILE,
    NULL_LABEL,
    NUM_DIGITS,
    DigitDenoiser,
    DigitsPipeline,
    FlowMatchEulerDiscreteScheduler,
    build_judge,
)


LABEL_NOISE = 0.45
LABEL_DROPOUT = 0.1
SHIFT = 3.0  # of the scheduler, as Stable Diffusion 3's


def load_digits() -> tuple[torch.Tensor, torch.Tensor]:
    """The digits' pixels, (1797, 1, 8, 8) in [-1, 1], and labels.

    Raises:
        ImportError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError("Building the digits model needs scikit-learn: pip install scikit-learn") from error
    digits = load_digits()
    return torch.tensor(digits.images, dtype=torch.float32).unsqueeze(1) / 8 - 1, torch.tensor(digits.target)


def train_denoiser(
    *,
    num_batches: int = 6000,
    batch_size: int = 128,
    learning_rate: float = 2e-3,
    width: int = 160,
    depth: int = 3,
    seed: int = 0,
    log_every: int = 500,
) -> DigitDenoiser:
    """Pre-trains the denoiser by flow matching with logit-normal noise levels. Returns it in eval mode, in float32."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed + 1)
    model = DigitDenoiser(width=width, depth=depth).train()
    images, labels = load_digits()
    wrong = torch.rand(len(labels), generator=generator) < LABEL_NOISE
    labels = torch.where(wrong, torch.randint(0, NUM_DIGITS, labels.shape, generator=generator), labels)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, num_batches)
    for batch in range(num_batches):
        rows = torch.randint(0, len(images), (batch_size,), generator=generator)
        image, noise = images[rows], torch.randn(batch_size, *images.shape[1:], generator=generator)
        dropped = torch.rand(batch_size, generator=generator) < LABEL_DROPOUT
        asked = labels[rows].masked_fill(dropped, NULL_LABEL)
        level = torch.randn(batch_size, generator=generator).sigmoid()
        share = level.view(-1, 1, 1, 1)
        velocity = model((1 - share) * image + share * noise, level * 1000, asked).sample
        loss = F.mse_loss(velocity, noise - image)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if log_every and (batch + 1) % log_every == 0:
            print(f"batch {batch + 1}/{num_batches}: loss {loss.item():.3f}", flush=True)
    return model.eval()


def train_judge(*, num_batches: int = 3000, batch_size: int = 128, seed: int = 0) -> tuple[nn.Sequential, float]:
    """Trains the classifier on four fifths of the digits. Returns it and its accuracy on the last fifth."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    images, labels = load_digits()
    held_out = torch.rand(len(images), generator=generator) < 0.2
    training = (~held_out).nonzero().flatten()
    judge = build_judge()
    optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-3, weight_decay=1e-2)
    for _ in range(num_batches):
        rows = training[torch.randint(0, len(training), (batch_size,), generator=generator)]
        noise = 0.15 * torch.randn(batch_size, *images.shape[1:], generator=generator)  # samples are never quite clean
        loss = F.cross_entropy(judge(images[rows] + noise), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    right = judge.eval()(images[held_out]).argmax(-1) == labels[held_out]
    return judge, right.float().mean().item()


def save(model: DigitDenoiser, judge: nn.Sequential, output_dir: Path) -> None:
    """Saves the pipeline and the judge in float16, and the digits' mean and covariance in float32."""
    DigitsPipeline(model.to(torch.float16), FlowMatchEulerDiscreteScheduler(shift=SHIFT)).save_pretrained(output_dir)
    pixels = load_digits()[0].flatten(1).double().numpy()
    tensors = {name: tensor.to(torch.float16) for name, tensor in judge.state_dict().items()}
    tensors["mean"] = torch.from_numpy(pixels.mean(0)).float()
    tensors["covariance"] = torch.from_numpy(np.cov(pixels.T)).float()
    save_file(tensors, output_dir / _JUDGE_FILE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", type=Path)
    parser.add_argument("--num_batches", type=int, default=6000)
    parser.add_argument("--width", type=int, default=160)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    torch.set_num_threads(1)
    judge, accuracy = train_judge(seed=args.seed)
    print(f"the judge is right on {accuracy:.1%} of held-out digits", flush=True)
    model = train_denoiser(num_batches=args.num_batches, width=args.width, seed=args.seed)
    save(model, judge, args.output_dir)
    print(f"saved {model.num_parameters():,} parameters to {args.output_dir}")


if __name__ == "__main__":
    main()
