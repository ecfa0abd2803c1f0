"""Image-token views: an autoregressive image model as a causal language model whose completions are images.

A model such as Janus reads text through one embedding and its own image codes through another, and it predicts codes with a
head of its own. Its view keeps the weights and changes three things, so that whatever trains causal language models trains
it: the last `num_image_tokens` ids of a sequence are codes, the output head is that of the codes, and `generate` samples
codes with classifier-free guidance.

A view is the model itself with another class, so no weight is copied and no name changes. What it saves, the plain class
loads.

To add a model, derive from [`ImageTokenView`] and its class and implement four members. Then decorate it with
[`register`]:

```python
@register
class MyImageTokens(ImageTokenView, MyForImageGeneration):
    @staticmethod
    def length_of(config): ...  # codes of an image

    @property
    def code_head(self): ...  # the linear layer that predicts codes

    def embed_codes(self, codes): ...  # (B, n) -> (B, n, H)

    def decode_codes(self, codes): ...  # (B, N) -> (B, height, width, 3) in [-1, 1]
```

and, if the language model is not `model.language_model` or layers stand between it and the head, `language_model` and
`before_head`. `chat_template` renders conversations, if the tokenizer's own template is not the one for images.
"""

import copy
from typing import Any

import torch
from jaxtyping import Float, Int
from PIL import Image
from torch import Tensor, nn
from transformers import GenerationConfig, JanusForConditionalGeneration, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast, CausalLMOutputWithPast

from ._util.text import nearest


class _Backbone(nn.Module):
    """The hidden states that the head of the codes reads. Has no parameters of its own."""

    def __init__(self, view: "ImageTokenView"):
        super().__init__()
        self._view = [view]  # in a list: a module would be its own child

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        use_cache: bool = False,
        **kwargs: Any,
    ) -> BaseModelOutputWithPast:
        view = self._view[0]
        states = view.language_model(
            inputs_embeds=view.embed_sequence(input_ids), attention_mask=attention_mask, use_cache=False
        ).last_hidden_state
        return BaseModelOutputWithPast(last_hidden_state=view.before_head(states))


class ImageTokenView:
    """Mixin that makes an autoregressive image model a causal language model over image codes.

    Only the language model has gradients, as in GCPO's official code. Make a view with [`image_token_view`].

    Attributes:
        start_token_id (`int`): The token that starts an image, the last of every prompt.
        pad_token_id (`int`): Replaces the prompt's text in the unguided branch.
        guidance_scale (`float`): Scale of classifier-free guidance in `generate`; 1 samples without.
        sampling_batch_size (`int`, *optional*): Images that `generate` samples at a time; `None` for all.
    """

    start_token_id: int
    pad_token_id: int
    guidance_scale: float = 5.0
    sampling_batch_size: int | None = None
    # Renders conversations as the model was trained to draw them; `None` for the tokenizer's own template
    chat_template: str | None = None

    # What a model must say

    @staticmethod
    def length_of(config: PretrainedConfig) -> int:
        """Number of codes of an image of a model with this configuration."""
        raise NotImplementedError

    @property
    def code_head(self) -> nn.Linear:
        """The linear layer that predicts codes; its `out_features` is the size of the codebook."""
        raise NotImplementedError

    def embed_codes(self, codes: Int[Tensor, "batch codes"]) -> Float[Tensor, "batch codes hidden"]:
        """The language model's inputs for codes."""
        raise NotImplementedError

    def decode_codes(self, codes: Int[Tensor, "batch codes"]) -> Float[Tensor, "batch height width 3"]:
        """The pixels of whole images, between -1 and 1."""
        raise NotImplementedError

    @property
    def num_image_tokens(self) -> int:
        """Number of codes of an image."""
        return self.length_of(self.config)

    # What it may say

    @property
    def language_model(self) -> nn.Module:
        """The transformer without a head, which takes `inputs_embeds`."""
        return self.model.language_model

    def before_head(self, states: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens features"]:
        """Layers between the language model and the head."""
        return states

    # The causal language model

    def _start_view(self) -> None:
        self.code_backbone = _Backbone(self)
        self.requires_grad_(False)
        self.language_model.requires_grad_(True)

    @property
    def base_model(self) -> nn.Module:
        return self.code_backbone

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def get_output_embeddings(self) -> nn.Module:
        return self.code_head

    def embed_sequence(self, ids: Int[Tensor, "batch tokens"]) -> Float[Tensor, "batch tokens hidden"]:
        """Embeds prompts and codes: the last `num_image_tokens` ids are codes.

        A stand-in row, whose result nobody reads, may be shorter than an image; ids beyond the codebook are then clamped.
        """
        split = max(ids.size(1) - self.num_image_tokens, 0)
        codes = ids[:, split:].clamp(max=self.code_head.out_features - 1)
        return torch.cat([self.get_input_embeddings()(ids[:, :split]), self.embed_codes(codes)], 1)

    def forward(
        self,
        input_ids: Tensor | None = None,
        attention_mask: Tensor | None = None,
        logits_to_keep: int | Tensor = 0,
        **kwargs: Any,
    ) -> CausalLMOutputWithPast:
        """(B, L) ids of prompts and whole images, and their mask -> (B, L or `logits_to_keep`, V) logits of codes."""
        states = self.base_model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        keep = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
        return CausalLMOutputWithPast(logits=self.code_head(states[:, keep]))

    def null_prompt(self, ids: Int[Tensor, "batch tokens"]) -> Int[Tensor, "batch tokens"]:
        """The prompts of the unguided branch: every token but the beginning of the text and of the image is padding."""
        kept = ids == self.start_token_id
        if (bos := self.config.get_text_config().bos_token_id) is not None:
            kept |= ids == bos
        return torch.where(kept, ids, self.pad_token_id)

    @torch.no_grad()
    def generate(
        self,
        input_ids: Int[Tensor, "batch tokens"] | None = None,
        attention_mask: Int[Tensor, "batch tokens"] | None = None,
        generation_config: GenerationConfig | None = None,
        **kwargs: Any,
    ) -> Int[Tensor, "batch sequence"]:
        """Samples an image for each prompt.

        Logits are l = null + guidance_scale (prompt - null), over the temperature. Of the generation config, `temperature`
        and `do_sample` count; no code ends an image.

        Args:
            input_ids: (B, P) ids of left-padded prompts that end with the token that starts an image.
            attention_mask: (B, P), 0 on padding.
            generation_config: Transformers' settings.

        Returns:
            (B, P + N) ids: prompts, then codes.
        """
        attention_mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask
        rows = self.sampling_batch_size or len(input_ids)
        parts = zip(input_ids.split(rows), attention_mask.split(rows), strict=True)
        codes = torch.cat([self._sample(ids, mask, generation_config) for ids, mask in parts])
        return torch.cat([input_ids, codes], 1)

    def _sample(self, ids: Tensor, mask: Tensor, config: GenerationConfig | None) -> Tensor:
        guided = self.guidance_scale != 1.0
        temperature = (config.temperature if config is not None else None) or 1.0
        if guided:  # the mask leaves out the batch's padding only, so each null prompt is attended to as a whole
            ids, mask = torch.cat([ids, self.null_prompt(ids)]), torch.cat([mask, mask])
        embeds, past, codes = self.get_input_embeddings()(ids), None, []
        for _ in range(self.num_image_tokens):
            out = self.language_model(
                inputs_embeds=embeds, attention_mask=mask, past_key_values=past, use_cache=True, return_dict=True
            )
            past = out.past_key_values
            logits = self.code_head(self.before_head(out.last_hidden_state[:, -1:]))[:, 0].float()
            if guided:
                prompt, null = logits.chunk(2)
                logits = null + self.guidance_scale * (prompt - null)
            if config is not None and not config.do_sample:
                code = logits.argmax(-1, keepdim=True)
            else:
                code = torch.multinomial((logits / temperature).softmax(-1), 1)
            codes.append(code)
            embeds = self.embed_codes(torch.cat([code, code]) if guided else code)
            mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        return torch.cat(codes, 1)

    @torch.no_grad()
    def images_of(self, codes: Int[Tensor, "batch codes"]) -> list[Image.Image]:
        """PIL images of (B, N) codes, `sampling_batch_size` at a time."""
        images = []
        for part in codes.split(self.sampling_batch_size or len(codes)):
            pixels = self.decode_codes(part).float().add(1).mul(127.5).clamp(0, 255).to(torch.uint8)
            images += [Image.fromarray(image) for image in pixels.cpu().numpy()]
        return images


VIEWS: dict[str, type] = {}


def register(view: type) -> type:
    """Class decorator: adds a view under the name of the model's class, which is also the name that it saves."""
    plain = next(
        base for base in view.__mro__ if issubclass(base, PreTrainedModel) and not issubclass(base, ImageTokenView)
    )
    VIEWS[plain.__name__] = view
    view.__name__ = plain.__name__  # transformers writes the class's name to `architectures`
    return view


@register
class JanusImageTokens(ImageTokenView, JanusForConditionalGeneration):
    """View of Janus and Janus-Pro."""

    # As the authors' code renders prompts of images, without a system message of its own
    chat_template = (
        "{{ bos_token }}{% for message in messages %}"
        "{% set text = message['content'] if message['content'] is string else message['content'][-1]['text'] %}"
        "{% if message['role'] == 'user' %}<|User|>: {{ text }}\n\n"
        "{% elif message['role'] == 'assistant' %}<|Assistant|>: {{ text }}{{ eos_token }}"
        "{% else %}{{ text }}\n\n{% endif %}{% endfor %}{% if add_generation_prompt %}<|Assistant|>:{% endif %}"
    )

    @staticmethod
    def length_of(config: PretrainedConfig) -> int:
        return config.vision_config.num_image_tokens

    @property
    def code_head(self) -> nn.Linear:
        return self.model.generation_head.vision_head

    def embed_codes(self, codes: Int[Tensor, "batch codes"]) -> Float[Tensor, "batch codes hidden"]:
        return self.prepare_embeddings_for_image_generation(codes)

    def decode_codes(self, codes: Int[Tensor, "batch codes"]) -> Float[Tensor, "batch height width 3"]:
        return self.decode_image_tokens(codes)

    def before_head(self, states: Float[Tensor, "batch tokens hidden"]) -> Float[Tensor, "batch tokens features"]:
        head = self.model.generation_head
        return head.activation_fn(head.proj_out(states))


def check_architecture(config: PretrainedConfig) -> None:
    """Raises `ValueError` unless a model of this configuration has a view."""
    names = config.architectures or []
    if not names or names[0] not in VIEWS:
        raise ValueError(
            f"The model is a {names[0] if names else config.model_type!r}, which has no view as an image-token model. "
            f"{nearest(names[0] if names else '', VIEWS)} `trl_credit.image_tokens` says how to add one."
        )


def image_token_view(
    model: PreTrainedModel,
    *,
    start_token_id: int,
    pad_token_id: int,
    guidance_scale: float = 5.0,
    sampling_batch_size: int | None = None,
) -> PreTrainedModel:
    """Makes a loaded model a view of itself, in place. A view stays one, with the new settings.

    Args:
        model: A model of a class in `VIEWS`, without an adapter.
        start_token_id: See [`ImageTokenView`].
        pad_token_id: See [`ImageTokenView`].
        guidance_scale: See [`ImageTokenView`].
        sampling_batch_size: See [`ImageTokenView`].

    Returns:
        The same object.

    Raises:
        ValueError: There is no view of the model's class.
    """
    if not isinstance(model, ImageTokenView):
        name = type(model).__name__
        if name not in VIEWS:
            raise ValueError(
                f"There is no view of {name} as an image-token model. {nearest(name, VIEWS)} `trl_credit.image_tokens` "
                "says how to add one."
            )
        model.__class__ = VIEWS[name]
        model._start_view()
    model.start_token_id, model.pad_token_id = start_token_id, pad_token_id
    model.guidance_scale, model.sampling_batch_size = guidance_scale, sampling_batch_size
    # Sampling settings of text would be validated against `generate`, and saved
    model.generation_config = copy.deepcopy(model.generation_config)
    return model
