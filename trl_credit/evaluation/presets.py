"""Published sampling settings and prompts, by name."""

from dataclasses import dataclass, field
from typing import Any

from .backends.base import SamplingSettings


@dataclass(frozen=True)
class Preset:
    """Published sampling settings and prompt.

    Args:
        source: Where they were published.
        sampling: How completions are sampled.
        prompt_template: Text around a problem, with the slot `{problem}`.
        system_prompt: System message.
        chat_template_kwargs: Arguments of the chat template.
    """

    source: str
    sampling: SamplingSettings
    prompt_template: str
    system_prompt: str | None = None
    chat_template_kwargs: dict[str, Any] = field(default_factory=dict)


_BOXED = "{problem}\n\nPlease reason step by step, and put your final answer within \\boxed{}."


_DAPO_TOKENS = 20_480  # 16,384 expected tokens and a soft-punish cache of 4,096


PRESETS: dict[str, Preset] = {
    "default": Preset(
        "Sampling: DAPO (arXiv 2503.14476, section 4.1: Avg@32 at temperature 1.0 and top-p 0.7; its largest generation, "
        "20,480 tokens). Prompt: the instruction of Qwen2.5-Math's model card, in the user's message.",
        SamplingSettings(temperature=1.0, top_p=0.7, max_tokens=_DAPO_TOKENS),
        _BOXED,
    ),
    "dapo": Preset(
        "DAPO (arXiv 2503.14476): sampling of section 4.1, and the prompt of its published data.",
        SamplingSettings(temperature=1.0, top_p=0.7, max_tokens=_DAPO_TOKENS),
        "Solve the following math problem step by step. The last line of your response should be of the form Answer: "
        "$Answer (without quotes) where $Answer is the answer to the problem.\n\n{problem}\n\nRemember to put your answer "
        'on its own line after "Answer:".',
    ),
    "qwen2.5": Preset(
        "Qwen2.5-7B-Instruct's generation_config.json; prompt of Qwen2.5-Math's model card; 8,192 tokens, its longest "
        "generation.",
        SamplingSettings(temperature=0.7, top_p=0.8, top_k=20, repetition_penalty=1.05, max_tokens=8_192),
        "{problem}",
        system_prompt="Please reason step by step, and put your final answer within \\boxed{}.",
    ),
    "qwen3-thinking": Preset(
        "Qwen3's model cards, thinking mode (38,912 tokens for contest mathematics).",
        SamplingSettings(temperature=0.6, top_p=0.95, top_k=20, max_tokens=38_912),
        _BOXED,
        chat_template_kwargs={"enable_thinking": True},
    ),
    "qwen3": Preset(
        "Qwen3's model cards, non-thinking mode (32,768 tokens).",
        SamplingSettings(temperature=0.7, top_p=0.8, top_k=20, max_tokens=32_768),
        _BOXED,
        chat_template_kwargs={"enable_thinking": False},
    ),
    "greedy": Preset(
        "No source: the likeliest token at each step, for one deterministic sample (n = 1).",
        SamplingSettings(temperature=0.0, max_tokens=_DAPO_TOKENS),
        _BOXED,
    ),
}
