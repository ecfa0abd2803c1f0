"""A model that calls tools."""

import importlib.util

from helpers import ROOT, prompts, save_tiny_model
from transformers import AutoTokenizer
from trl.chat_template_utils import qwen3_chat_template


def tool_calling_model(path):
    """A tiny model with Qwen3's chat template, for which TRL can parse tool calls."""
    path = save_tiny_model(path, context=4096)
    tokenizer = AutoTokenizer.from_pretrained(path)
    tokenizer.chat_template = qwen3_chat_template
    return path, tokenizer


def chats():
    return prompts().map(lambda row: {"prompt": [{"role": "user", "content": row["prompt"]}]})


# Images


def vision():
    path = ROOT / "examples" / "vision.py"
    spec = importlib.util.spec_from_file_location("vision_example", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
