import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

from importlib.util import find_spec
from pathlib import Path

import pytest
import support.typecheck  # noqa: F401
import torch
from jaxtyping import install_import_hook


# Modules whose shapes are checked at each call. `CreditInputs` checks its own, with messages for users
SHAPED = [
    *(f"methods.{name}" for name in ("base", "dgpo", "gcpo", "ops", "rlcsd", "rlsd", "teacher", "uniform", "vppo")),
    *(
        f"signals.{name}"
        for name in (
            "base",
            "damaged_image",
            "divergence",
            "models",
            "negative_prompt",
            "other_model",
            "reference",
            "second_prompt",
            "thought_tokens",
        )
    ),
    "trainer.gspo_token",
]
install_import_hook([f"trl_credit.{name}" for name in SHAPED], "support.typecheck.check")

from helpers import save_tiny_model  # noqa: E402


# Modules with fixtures that several folders share
pytest_plugins = [
    "support.bench",
    "support.comparison",
    "support.effect",
    "support.evaluation",
    "support.evaluation_runs",
    "support.generation",
    "support.inspection",
    "support.settings",
]

QUICK = ("unit", "smoke")


def pytest_collection_modifyitems(items):
    """Marks everything outside `QUICK` as slow, jobs of several processes as alone, and what needs vLLM."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0]
        if folder not in QUICK:
            item.add_marker("slow")
        if folder in ("distributed", "with_vllm"):
            item.add_marker("alone")
        if folder == "with_vllm":
            item.add_marker("vllm")
            if find_spec("vllm") is None:
                item.add_marker(pytest.mark.skip(reason="needs vLLM: `make test-vllm`"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # The models are so small that threads only cost time
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Path of a random two-layer Qwen2-type model with a character tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
