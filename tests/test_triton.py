"""The Triton kernel against the torch fold: interpreted where there is no GPU."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch


SCRIPT = """
import sys, torch
from trl_credit.signals import statistics
from trl_credit.signals._triton import fold_triton

device = sys.argv[1]
torch.manual_seed(0)
worst = 0.0
for tokens, columns, scale in [(1, 1, 1.0), (3, 2, 1.0), (5, 37, 4.0), (4, 1000, 0.5), (2, 129, 5e3)]:
    x = scale * torch.randn(tokens, columns)
    for y in (scale * torch.randn(tokens, columns), x + 1e-3 * torch.randn(tokens, columns)):
        x_, y_ = x.clone(), y.clone()
        if columns > 30:
            x_[0, 3] = y_[0, 3] = -torch.inf  # neither can emit it
            y_[1, 5] = -torch.inf  # KL(p || q) is infinite
            x_[-1, 7] = torch.nan
        for outputs in (statistics.STATISTICS, ("squared_hellinger",), ("entropy",), ("kl",), ("reverse_kl",)):
            expected, stats = torch.zeros(2, 8, tokens)
            statistics._fold(x_.clone(), y_.clone(), expected, outputs)
            stats = stats.to(device)
            fold_triton(x_.to(device), y_.to(device), stats, outputs)
            stats = stats.cpu()
            # The maximum of a token with NaN is NaN in torch and some logit here; its sums are NaN in both
            ours, theirs = (torch.where(s[1].isnan(), torch.nan, s) for s in (stats, expected))
            torch.testing.assert_close(ours, theirs, rtol=2e-4, atol=2e-7 * max(scale, 1.0), equal_nan=True)
print("same")
"""


def check(device, **environment):
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, device],
        env={**os.environ, **environment}, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.stdout.strip().endswith("same"), done.stderr[-3000:]


def test_interpreted():
    assert importlib.util.find_spec("triton"), "the dev extra installs Triton on Linux"
    check("cpu", TRITON_INTERPRET="1")


@pytest.mark.gpu
def test_on_a_gpu():
    assert torch.cuda.is_available()
    check("cuda")
