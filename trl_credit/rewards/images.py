"""Reward functions that judge images: `f(images, prompts, **columns)` with one PIL image for each completion.

| name | reward | from |
|---|---|---|
| `compressibility`, `incompressibility` | size of the image as JPEG, negated or not | DDPO, arXiv 2305.13301 |
| `aesthetic` | LAION's aesthetic predictor, about 1 to 10 | DDPO, and LAION's improved-aesthetic-predictor |
| `clip_score` | 2.5 max(cos, 0) | CLIPScore, arXiv 2104.08718 |
| `pickscore` | cos times CLIP's learned temperature, about 15 to 25 | PickScore, arXiv 2305.01569 |
| `hps` | cos, about 0.2 to 0.35 | HPS v2, arXiv 2306.09341 |

Images are prepared as the checkpoint's processor says. HPS's own code pads what is not square; a CLIP processor crops it.

cos is the cosine of CLIP's embeddings of image and prompt. The first two are reward functions. The others are factories,
whose arguments a recipe gives as `{name: clip_score, model: ...}`: they load CLIP at the first call, once per process, and
share it if their arguments are the same. Images may differ in size and mode. A prompt may be a conversation, of which the
last user message counts.
"""

import functools
import io
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from annotated_types import Ge, Le

from .._util.images import check_images
from .._util.settings import AtLeast1, Whole, check_value
from .._util.text import nearest
from .._util.unsharded import unsharded


if TYPE_CHECKING:
    import torch
    from PIL.Image import Image
    from transformers import CLIPModel


# Where the weights are on the hub
CLIP = "openai/clip-vit-large-patch14"
PICKSCORE = "yuvalkirstain/PickScore_v1"
PICKSCORE_PROCESSOR = "laion/CLIP-ViT-H-14-laion2B-s32B-b79K"
HPS = "adams-story/HPSv2-hf"  # converted for transformers; the authors' own file is open_clip's
AESTHETIC_HEAD = "trl-lib/ddpo-aesthetic-predictor"
AESTHETIC_FILE = "aesthetic-model.pth"
_DTYPES = ("float32", "float16", "bfloat16")


# Without a model


def jpeg_kilobytes(image: "Image", quality: int = 95) -> float:
    """Size as JPEG in units of 1,000 bytes. What is neither grayscale nor RGB is converted to RGB."""
    buffer = io.BytesIO()
    (image if image.mode in ("L", "RGB") else image.convert("RGB")).save(buffer, format="JPEG", quality=quality)
    return buffer.tell() / 1000


def incompressibility(
    images: "Sequence[Image] | None" = None, prompts: Sequence | None = None, quality: int = 95, **columns
) -> list[float]:
    """Size of each image as JPEG, in kB of 1,000 bytes: detailed images get more.

    Args:
        images: One PIL image for each completion.
        prompts: Not read.
        quality: JPEG's quality, 1 to 100; 95 is DDPO's.

    Raises:
        ValueError: No images, one that is not a PIL image, or a `quality` out of range.
    """
    return _sizes("incompressibility", images, quality)


def compressibility(
    images: "Sequence[Image] | None" = None, prompts: Sequence | None = None, quality: int = 95, **columns
) -> list[float]:
    """The negative of [`incompressibility`]: plain images get more."""
    return [-size for size in _sizes("compressibility", images, quality)]


def _sizes(name: str, images: "Sequence[Image] | None", quality: int) -> list[float]:
    check_quality(quality)
    return [jpeg_kilobytes(image, quality) for image in check_images(name, images)]


def check_quality(quality: Any) -> None:
    """Raises `ValueError` for a JPEG quality out of range."""
    check_value("quality", quality, Annotated[Whole, Ge(1), Le(100)])


# With CLIP


@dataclass(frozen=True)
class _ClipSettings:
    """What identifies a loaded CLIP."""

    model: str
    processor: str
    revision: str | None
    device: str | None
    dtype: str


def aesthetic(
    model: str = CLIP,
    head: str = AESTHETIC_HEAD,
    head_file: str = AESTHETIC_FILE,
    processor: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 16,
) -> Callable:
    """LAION's aesthetic predictor: a small network on CLIP's normalized image embedding. It does not read the prompt.

    Args:
        model: Folder or hub id of the CLIP model, in transformers' format. The published heads need ViT-L/14.
        head: The head's weights: a file (`sac+logos+ava1-l14-linearMSE.pth` of LAION's repository, or the same as
            `.safetensors`), or a hub id.
        head_file: The file's name, if `head` is a hub id.
        processor: Folder or hub id of the image processor, if not the model's own.
        revision: Revision of the model.
        device: Where to run it; by default where the process trains.
        dtype: `float32`, `float16` or `bfloat16`.
        batch_size: Images per forward.

    Raises:
        ValueError: A wrong argument. The reward raises it if the weights cannot be loaded or do not fit the model.
    """
    settings = _settings(model, processor, revision, device, dtype, batch_size)
    _check_path("head", head)
    return _named("aesthetic", _aesthetic, settings=settings, head=head, head_file=head_file, batch_size=batch_size)


def clip_score(
    model: str = CLIP,
    processor: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 16,
) -> Callable:
    """CLIPScore: 2.5 max(cos, 0), without the paper's prefix `A photo depicts`. Arguments as in [`aesthetic`]."""
    settings = _settings(model, processor, revision, device, dtype, batch_size)
    return _named("clip_score", _similarity, settings=settings, kind="clip_score", batch_size=batch_size)


def pickscore(
    model: str = PICKSCORE,
    processor: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 16,
) -> Callable:
    """PickScore: the cosine times CLIP's learned temperature (`logit_scale`). Arguments as in [`aesthetic`].

    The published model is read with the processor of the CLIP it was trained from, as its authors do.
    """
    if processor is None and model == PICKSCORE:
        processor = PICKSCORE_PROCESSOR
    settings = _settings(model, processor, revision, device, dtype, batch_size)
    return _named("pickscore", _similarity, settings=settings, kind="pickscore", batch_size=batch_size)


def hps(
    model: str = HPS,
    processor: str | None = None,
    revision: str | None = None,
    device: str | None = None,
    dtype: str = "float32",
    batch_size: int = 16,
) -> Callable:
    """Human preference score v2: the cosine. Arguments as in [`aesthetic`].

    `model` is a copy in transformers' format, as the authors' own weights are in open_clip's.
    """
    settings = _settings(model, processor, revision, device, dtype, batch_size)
    return _named("hps", _similarity, settings=settings, kind="hps", batch_size=batch_size)


def _named(name: str, function: Callable, **arguments: Any) -> Callable:
    reward = functools.partial(function, **arguments)
    reward.__name__ = name  # in TRL's metrics
    return reward


def _similarity(
    images: "Sequence[Image] | None" = None,
    prompts: Sequence | None = None,
    *,
    settings: _ClipSettings,
    kind: str,
    batch_size: int,
    **columns,
) -> list[float]:
    images = check_images(kind, images)
    texts = [prompt_text(prompt, i, f"The reward {kind!r}") for i, prompt in enumerate(prompts or [])]
    if len(texts) != len(images):
        raise ValueError(f"The reward {kind!r} needs a prompt for each image, but got {len(texts)} for {len(images)}.")
    if not images:
        return []
    clip = _load_clip(settings)
    unique = list(dict.fromkeys(texts))  # completions of a group share their prompt
    rows = {text: i for i, text in enumerate(unique)}
    of_texts = clip.embed_texts(unique, batch_size)[[rows[text] for text in texts]]
    cosines = (clip.embed_images(images, batch_size) * of_texts).sum(dim=-1)
    if kind == "clip_score":
        cosines = 2.5 * cosines.clamp(min=0)
    elif kind == "pickscore":
        cosines = clip.temperature * cosines
    return cosines.tolist()


def _aesthetic(
    images: "Sequence[Image] | None" = None,
    prompts: Sequence | None = None,
    *,
    settings: _ClipSettings,
    head: str,
    head_file: str,
    batch_size: int,
    **columns,
) -> list[float]:
    images = check_images("aesthetic", images)
    if not images:
        return []
    clip = _load_clip(settings)
    layers = _load_head(head, head_file, clip.model.config.projection_dim)
    scores = clip.embed_images(images, batch_size)
    for weight, bias in layers:  # the official network has no activations, and its dropout is for training only
        scores = scores @ weight.T + bias
    return scores.squeeze(-1).tolist()


def prompt_text(prompt: Any, index: int = 0, reader: str = "This") -> str:
    """A prompt as text: itself, or the text of a conversation's last user message.

    Raises:
        ValueError: There is no such text; the message names `reader` and `index`.
    """
    text = prompt
    if isinstance(prompt, list | tuple):
        users = [message for message in prompt if isinstance(message, dict) and message.get("role") == "user"]
        text = users[-1].get("content") if users else None
        if isinstance(text, list | tuple):
            parts = [part.get("text") for part in text if isinstance(part, dict) and part.get("type") == "text"]
            text = " ".join(filter(None, parts)) or None
    if not isinstance(text, str):
        raise ValueError(
            f"{reader} reads prompts as text, or a conversation's last user message, but prompt {index} has "
            f"none: {str(prompt)[:200]}"
        )
    return text


class _Clip:
    """A CLIP model in eval mode, with its image processor and tokenizer."""

    def __init__(self, model: "CLIPModel", images: Any, tokenizer: Any):
        self.model, self.images, self.tokenizer = model, images, tokenizer

    @property
    def temperature(self) -> float:
        return self.model.logit_scale.float().exp().item()

    def embed_images(self, images: "list[Image]", batch_size: int) -> "torch.Tensor":
        """(B, D) normalized embeddings, in float32 on the CPU."""

        def embed(part: "list[Image]") -> "torch.Tensor":
            pixels = self.images([image.convert("RGB") for image in part], return_tensors="pt")["pixel_values"]
            pixels = pixels.to(self.model.device, self.model.dtype)
            return self.model.visual_projection(self.model.vision_model(pixel_values=pixels).pooler_output)

        return self._normalized(embed, images, batch_size)

    def embed_texts(self, texts: list[str], batch_size: int) -> "torch.Tensor":
        """(B, D) normalized embeddings of texts, cut to the model's length, in float32 on the CPU."""

        def embed(part: list[str]) -> "torch.Tensor":
            length = self.model.config.text_config.max_position_embeddings
            inputs = self.tokenizer(part, padding=True, truncation=True, max_length=length, return_tensors="pt")
            names = ("input_ids", "attention_mask")
            inputs = {name: inputs[name].to(self.model.device) for name in names}
            return self.model.text_projection(self.model.text_model(**inputs).pooler_output)

        return self._normalized(embed, texts, batch_size)

    @staticmethod
    def _normalized(embed: Callable, items: list, batch_size: int) -> "torch.Tensor":
        import torch

        with torch.no_grad():
            parts = [embed(items[i : i + batch_size]).float().cpu() for i in range(0, len(items), batch_size)]
        return torch.nn.functional.normalize(torch.cat(parts), dim=-1)


@functools.cache
def _load_clip(settings: _ClipSettings) -> _Clip:
    """Loads a CLIP model.

    Raises:
        ValueError: It cannot be loaded, or is another kind of model.
    """
    import torch
    from accelerate import PartialState
    from transformers import AutoConfig, AutoImageProcessor, AutoTokenizer, CLIPModel

    revision = settings.revision if settings.processor == settings.model else None
    try:
        config = AutoConfig.from_pretrained(settings.model, revision=settings.revision)
        if config.model_type != "clip":  # transformers would load it all the same, with random weights
            raise ValueError(f"it is of the type {config.model_type!r}.")
        with unsharded():
            model = CLIPModel.from_pretrained(
                settings.model, revision=settings.revision, dtype=getattr(torch, settings.dtype)
            )
        images = AutoImageProcessor.from_pretrained(settings.processor, revision=revision)
        tokenizer = AutoTokenizer.from_pretrained(settings.processor, revision=revision)
    except (OSError, ValueError, ImportError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(
            f"No CLIP model in transformers' format can be loaded from {settings.model!r} (processor: "
            f"{settings.processor!r}): {reason}"
        ) from error
    return _Clip(model.to(settings.device or PartialState().device).eval().requires_grad_(False), images, tokenizer)


# Places of the linear layers in the official network; between them stands dropout
_HEAD_LAYERS = (0, 2, 4, 6, 7)


@functools.cache
def _load_head(head: str, head_file: str, width: int) -> "list[tuple[torch.Tensor, torch.Tensor]]":
    """The (weight, bias) of the head's linear layers, in float32 on the CPU.

    Raises:
        ValueError: There is no such file, or it holds another network, or one for embeddings of another width.
    """
    import torch
    from huggingface_hub import hf_hub_download
    from safetensors.torch import load_file

    try:
        path = Path(head).expanduser()
        file = path if path.is_file() else Path(hf_hub_download(head, head_file))
        safe = file.suffix == ".safetensors"
        state = load_file(file) if safe else torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # hub, files and pickles raise many kinds
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        raise ValueError(f"`head` of 'aesthetic': {head!r} cannot be loaded: {reason}") from error
    names = [(f"layers.{i}.weight", f"layers.{i}.bias") for i in _HEAD_LAYERS]
    if not isinstance(state, dict) or set(state) != {name for pair in names for name in pair}:
        found = ", ".join(sorted(map(str, state))[:6]) if isinstance(state, dict) else type(state).__name__
        raise ValueError(
            f"`head` of 'aesthetic': {head!r} is not LAION's linear head, whose layers are "
            f"{', '.join(map(str, _HEAD_LAYERS))}: it has {found}."
        )
    layers = [(state[weight].float(), state[bias].float()) for weight, bias in names]
    if layers[0][0].shape[1] != width:
        raise ValueError(
            f"`head` of 'aesthetic': {head!r} reads embeddings of width {layers[0][0].shape[1]}, but those of `model` have "
            f"{width}: name the CLIP that it was trained on (ViT-L/14 for LAION's)."
        )
    return layers


# Arguments


def _settings(
    model: Any,
    processor: Any,
    revision: str | None,
    device: Any,
    dtype: Any,
    batch_size: Any,
) -> _ClipSettings:
    """Checks the arguments without loading anything."""
    import torch

    _check_path("model", model)
    if processor is not None:
        _check_path("processor", processor)
    dtype = str(dtype).removeprefix("torch.")
    if dtype not in _DTYPES:
        raise ValueError(f"`dtype`: {dtype!r} cannot be used. {nearest(dtype, _DTYPES)}")
    check_value("batch_size", batch_size, AtLeast1)
    if device is not None:
        try:
            device = str(torch.device(device))
        except (RuntimeError, TypeError):
            raise ValueError(f"`device`: {device!r} is not a device, such as cpu or cuda:0.") from None
    return _ClipSettings(model, processor or model, revision, device, dtype)


def _check_path(field: str, name: Any) -> None:
    """Raises `ValueError` if a name can only be a path, and nothing is there."""
    if not isinstance(name, str) or not name:
        raise ValueError(f"`{field}` must be a path or a hub id, got {name!r}.")
    file = name.startswith((".", "/", "~")) or name.count("/") > 1 or name.endswith((".pth", ".pt", ".safetensors"))
    if file and not Path(name).expanduser().exists():
        raise ValueError(f"`{field}`: there is no {name!r} (looked from {Path.cwd()}).")
