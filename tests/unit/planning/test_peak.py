"""The bytes of a whole update at its peak, measured on a small model, against the formulas."""

import weakref

import pytest
import torch
import trl.trainer.utils
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import Qwen2Config, Qwen2ForCausalLM

from trl_credit.planning import memory
from trl_credit.planning.layouts import LAYOUTS
from trl_credit.planning.memory import Batch, Trained, activation_bytes, head_bytes, state_bytes
from trl_credit.planning.sizes import model_of


CONFIG = Qwen2Config(
    hidden_size=256, intermediate_size=768, num_hidden_layers=6, num_attention_heads=8, num_key_value_heads=2, vocab_size=500
)  # fmt: skip
MODEL = model_of(CONFIG, "small")


class Peak(TorchDispatchMode):
    """Counts the bytes of the storages that operators make, until they are freed."""

    def __init__(self, model: torch.nn.Module):
        super().__init__()
        self.now = self.most = 0
        self.weights = [p.untyped_storage() for p in model.parameters()]
        self.seen = {id(storage): None for storage in self.weights}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, torch.Tensor) and id(storage := tensor.untyped_storage()) not in self.seen:
                self._add(storage)
        self.most = max(self.most, self.now)
        return made

    def _add(self, storage: torch.UntypedStorage) -> None:
        key, size = id(storage), storage.nbytes()

        def freed(_):
            self.now -= size
            del self.seen[key]

        self.now += size
        self.seen[key] = weakref.ref(storage, freed)


@pytest.mark.parametrize(("rows", "length"), [(4, 160), (1, 300)])
@pytest.mark.parametrize(("checkpointing", "below", "above"), [(False, 0.03, 0.0), (True, 0.0, 0.25)])
def test_peak_of_an_update(rows, length, checkpointing, below, above, monkeypatch):
    """Of two micro-batches, since the second has gradients beside its activations."""
    monkeypatch.setattr(trl.trainer.utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", 500)  # else the tile is most of it
    monkeypatch.setattr(memory, "TILE_COLUMNS", 500)
    model = Qwen2ForCausalLM._from_config(CONFIG, attn_implementation="sdpa").train()
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})
    trl.trainer.utils.add_fused_lm_head(model)
    ids = torch.randint(0, 500, (rows, length))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0  # so that attention takes a mask
    with Peak(model) as peak:
        for _ in range(2):
            model(input_ids=ids, attention_mask=mask, labels=ids, fused_lm_head=True).log_probs.sum().backward()
    trained, batch = Trained(MODEL.parameters, 4, 4), Batch(rows, 1, length - 1, checkpointing)
    found = (
        state_bytes(MODEL, trained, LAYOUTS["one"], 1)["gradients"]
        + activation_bytes(MODEL, trained, batch)
        + head_bytes(MODEL, trained, batch)
    )
    assert (1 - below) * peak.most <= found <= (1 + above) * peak.most


def test_the_heads_tile_does_not_depend_on_the_vocabulary():
    """TRL's buffer has 32,768 columns, also for fewer logits and fewer than 4,096 tokens."""
    trained = Trained(0, 4, 4, adapters=True)
    few, many = (head_bytes(MODEL, trained, Batch(1, 1, tokens)) for tokens in (100, 8192))
    assert few == 100 * (32768 * 4 + 256 * 8)
    assert many == 4096 * 32768 * 4 + 8192 * 256 * 8
