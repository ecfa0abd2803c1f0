"""The Triton kernel against the fold in torch: in Triton's interpreter without a GPU, compiled with one."""

import os
import subprocess
import sys

import pytest
import torch
from helpers import TESTS
from transformers.utils import is_triton_available

from trl_credit.signals import divergence as statistics
from trl_credit.signals._triton import fold_triton


pytestmark = pytest.mark.skipif(not is_triton_available(), reason="Triton exists for Linux only")

CONSTANTS = {"lowest": statistics._LOWEST, "floor": statistics._FLOOR, "ratio_limit": statistics._RATIO_LIMIT}

PLANES = {4: ("squared_hellinger", "bhattacharyya"), 5: ("entropy",), 6: ("kl",), 7: ("reverse_kl",)}


def tiles(columns):
    """Halves of logits: of any size, nearly equal, equal, with -inf on either side and on both, all -inf, NaN."""
    generator = torch.Generator().manual_seed(columns)
    scales = torch.tensor([1e-3, 1.0, 10.0, 300.0, 5000.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0, 3.0]).unsqueeze(1)
    x, y = scales * torch.randn(2, 12, columns, generator=generator)
    y[5] = x[5] + 1e-4 * torch.randn(columns, generator=generator)
    y[6] = x[6]
    x[7, 0] = -torch.inf
    y[8, -1] = -torch.inf
    x[9, columns // 2] = y[9, columns // 2] = -torch.inf
    x[10] = -torch.inf
    y[11, 0] = torch.nan
    return x, y


def compare(device):
    """Both folds, on every tile and for every output."""
    for columns in (1, 2, 3, 50, 1000, 4096):
        x, y = (tile.to(device) for tile in tiles(columns))
        for outputs in (*((name,) for name in statistics.STATISTICS), statistics.STATISTICS):
            # The middle one of three blocks of the vocabulary; what is not asked for must stay as it is
            blocks = torch.full((8, 12, 3), -7.0, device=device)
            fold_triton(x, y, blocks[:, :, 1], outputs, **CONSTANTS)
            found, expected = blocks[:, :, 1], torch.full((8, 12), -7.0, device=device)
            statistics._fold(x.clone(), y.clone(), expected, outputs)
            assert (blocks[:, :, ::2] == -7).all()
            for plane in range(8):
                asked = plane < 4 or not set(PLANES[plane]).isdisjoint(outputs)
                assert (expected[plane] != -7).all() if asked else (expected[plane] == -7).all()
                ours, theirs = found[plane], expected[plane]
                if plane in (0, 2):  # a maximum need not be NaN where the sum after it is
                    ours, theirs = (torch.where(s[plane + 1].isnan(), torch.nan, s[plane]) for s in (found, expected))
                # KL is of the second order in what is rounded
                atol = 1e-7 if plane < 6 else 2e-11 + 1e-6 * theirs.abs().clamp(max=1).sqrt().nan_to_num(0.0)
                close = torch.isclose(ours, theirs, rtol=3e-6, atol=0.0, equal_nan=True)
                close |= (ours - theirs).abs() <= atol
                assert close.all(), (plane, columns, outputs, ours[~close], theirs[~close])


def test_interpreted():
    """In a process of its own: Triton reads the variable when it is imported."""
    code = f"import runpy; runpy.run_path({__file__!r})['compare']('cpu')"
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=TESTS, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.gpu
def test_compiled():
    compare("cuda")


@pytest.mark.gpu
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_compare_distributions(dtype, bias):
    """All of it, on the GPU's tiles, against the CPU."""
    generator = torch.Generator().manual_seed(0)
    hidden = torch.randn(2, 1, 3000, 64, generator=generator).to(dtype)
    weights = torch.randn(2, 5000, 64, generator=generator).to(dtype) / 4
    biases = torch.randn(2, 5000, generator=generator).to(dtype) if bias else (None, None)
    mask = torch.ones(1, 3000, dtype=torch.bool)

    def run(device):
        sides = []
        for states, weight, offset in zip(hidden, weights, biases, strict=True):
            sides += [
                states.to(device),
                statistics.Head(weight.to(device), None if offset is None else offset.to(device)),
            ]
        return statistics.compare_distributions(*sides, mask.to(device), statistics.STATISTICS, 0.7, dtype)

    ours, theirs = run("cuda"), run("cpu")
    for name in statistics.STATISTICS:
        torch.testing.assert_close(ours[name].cpu(), theirs[name], rtol=1e-4, atol=1e-5)
