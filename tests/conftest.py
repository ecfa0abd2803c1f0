import os


os.environ["HF_HUB_OFFLINE"] = "1"
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("ACCELERATE_USE_CPU", "true")

import pytest
import torch
from helpers import save_tiny_model


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # The models are so small that threads only cost time
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> str:
    """Path of a random two-layer Qwen2-type model with a character tokenizer."""
    return save_tiny_model(tmp_path_factory.mktemp("models") / "tiny")
