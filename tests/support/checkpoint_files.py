"""Ways to damage a file, and the contents of a checkpoint."""

import torch
from safetensors.torch import save_file


def cut(path):
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2])


def empty(path):
    path.write_bytes(b"")


def flip(path):
    """In the header or, of JSON, in the beginning."""
    data = bytearray(path.read_bytes())
    data[0] ^= 0xFF
    path.write_bytes(data)


def fill(path):
    """With zeros from the middle on, as a file system may after a crash."""
    data = path.read_bytes()
    path.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))


DAMAGE = {"deleted": lambda path: path.unlink(), "cut": cut, "empty": empty, "flipped": flip, "zeros": fill}


def weights(path):
    save_file({"a": torch.zeros(3)}, path)
