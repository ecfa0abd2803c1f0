"""A model's sizes, from its config alone: no weights are read."""

from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Model:
    """A decoder, described by the sizes of its matrix products.

    Args:
        name: Its name.
        layers: Number of layers.
        hidden: Hidden size.
        intermediate: Width of the layers' MLPs, for each token.
        heads: Attention heads.
        kv_heads: Heads of keys and values.
        vocab: Number of logits.
        head_dim: Size of a head.
        backbone: Parameters of the layers' matrices that each token meets.
        parameters: All parameters.
        linear: Parameters of the layers' matrices that quantization packs.
        context: Tokens of the longest sequence that its positions allow.
        odd: What the formulas do not see of it, in words.
    """

    name: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab: int
    head_dim: int
    backbone: int
    parameters: int
    linear: int
    context: int = 0
    odd: tuple[str, ...] = ()

    @classmethod
    def dense(
        cls, name: str, layers: int, hidden: int, intermediate: int, heads: int, kv_heads: int, vocab: int,
        head_dim: int = 128, tied: bool = False,
    ) -> "Model":  # fmt: skip
        """A decoder with gated MLPs. Norms and biases are left out."""
        attention = 2 * hidden * head_dim * (heads + kv_heads)
        backbone = layers * (attention + 3 * hidden * intermediate)
        parameters = backbone + hidden * vocab * (1 if tied else 2)
        return cls(
            name, layers, hidden, intermediate, heads, kv_heads, vocab, head_dim, backbone, parameters, linear=backbone
        )

    @property
    def head(self) -> int:
        """Parameters of the output head."""
        return self.hidden * self.vocab

    @property
    def last_matrices(self) -> int:
        """Parameters of the layers' last matrices, which checkpointing need not compute again."""
        return self.layers * self.hidden * self.intermediate

    @property
    def kv_bytes(self) -> int:
        """Bytes of one token in an engine's cache, in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    def backbone_flops(self, tokens: int, attention: float) -> float:
        """FLOPs of one sequence's forward. `attention` is the share of the (tokens, tokens) scores that is computed."""
        return 2 * self.backbone * tokens + 4 * attention * self.layers * self.heads * self.head_dim * tokens**2

    def head_flops(self, tokens: int) -> float:
        return 2 * self.head * tokens


def empty_model(config: Any, trust_remote_code: bool = False) -> Any:
    """The model of a config on the meta device: shapes without memory. Its class is the one that TRL loads."""
    import torch
    import transformers

    names = getattr(config, "architectures", None) or [None]
    cls = getattr(transformers, names[0] or "", None)
    with torch.device("meta"):
        if cls is not None and hasattr(cls, "_from_config"):
            return cls._from_config(config)
        return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=trust_remote_code)


def model_of(config: Any, name: str, trust_remote_code: bool = False) -> Model:
    """The sizes of a config's model. Of a mixture of experts, each token meets the share of experts that it is routed to.

    Raises:
        ValueError: The config is not one of a decoder with attention, or no model can be made of it.
    """
    import torch
    from transformers.pytorch_utils import Conv1D

    text = config.get_text_config()
    heads, layers, hidden = (
        getattr(text, key, None) for key in ("num_attention_heads", "num_hidden_layers", "hidden_size")
    )
    if not (heads and layers and hidden):
        raise ValueError(
            f"`model_name_or_path`: {name!r} ({config.model_type}) has no layers of attention in its config, and the "
            "formulas are for decoders that have."
        )
    try:
        model = empty_model(config, trust_remote_code)
    except Exception as error:  # a model's code may raise anything
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`model_name_or_path`: no model can be made of the config of {name!r}: {reason}") from error
    head = model.get_output_embeddings()
    experts, chosen = _experts(text)
    decoder = model.get_decoder() or model  # without an image tower, which text tokens do not meet
    embeddings = {id(module.weight) for module in model.modules() if isinstance(module, torch.nn.Embedding)}
    met = sum(
        p.numel() * (chosen / experts if ".experts." in key else 1)
        for key, p in decoder.named_parameters()
        if p.dim() > 1 and id(p) not in embeddings and (head is None or p is not head.weight)
    )
    # What bitsandbytes replaces; experts are parameters without a module of their own
    linear = sum(
        module.weight.numel()
        for module in model.modules()
        if module is not head and (type(module) is torch.nn.Linear or isinstance(module, Conv1D))
    )
    width = getattr(text, "intermediate_size", None) or 4 * hidden
    if experts > 1:
        width = (getattr(text, "moe_intermediate_size", None) or width) * chosen
    return Model(
        name=name,
        layers=layers,
        hidden=hidden,
        intermediate=width,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        vocab=text.vocab_size,
        head_dim=getattr(text, "head_dim", None) or hidden // heads,
        backbone=round(met),
        parameters=sum(p.numel() for p in model.parameters()),
        linear=linear,
        context=getattr(text, "max_position_embeddings", None) or 0,
        odd=_odd(config, text),
    )


def _odd(config: Any, text: Any) -> tuple[str, ...]:
    """What the formulas do not see of a model."""
    found = {
        "images, their tower's work and activations": hasattr(config, "vision_config"),
        "that keys and values are compressed": getattr(text, "kv_lora_rank", None),
        "that some layers see a sliding window": "sliding_attention" in (getattr(text, "layer_types", None) or ()),
    }
    return tuple(words for words, true in found.items() if true)


def _experts(text: Any) -> tuple[int, int]:
    """Experts of a layer, and how many of them a token meets."""
    total = next(
        filter(None, (getattr(text, key, 0) for key in ("num_experts", "num_local_experts", "n_routed_experts"))), 1
    )
    return total, min(getattr(text, "num_experts_per_tok", None) or total, total)


def adapter_parameters(config: Any, peft_config: Any, trust_remote_code: bool = False) -> int:
    """Parameters that an adapter trains, counted by PEFT on the meta device."""
    import copy
    import warnings

    from peft import get_peft_model

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of shapes that the meta device cannot check
        model = get_peft_model(
            empty_model(config, trust_remote_code), copy.deepcopy(peft_config), low_cpu_mem_usage=True
        )
    return sum(p.numel() for p in model.parameters() if p.requires_grad)
