"""Training and evaluation score the same text."""

import pytest
import torch
from datasets import Dataset
from helpers import config
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit import CreditGRPOTrainer
from trl_credit.evaluation.backends.base import Request
from trl_credit.evaluation.backends.prompts import render
from trl_credit.evaluation.backends.transformers import to_generation
from trl_credit.inspection.scoring import Completion, CreditScorer
from trl_credit.methods.registry import build_credit
from trl_credit.rewards import accuracy, judged, reasoning_accuracy, think_format
from trl_credit.rewards.judge import judge


PIECES = ("<think>", "</think>", r"\boxed{5}", r"\boxed{6}", "\n")

# What a model generates after its prompt
GENERATED = [
    (r"\boxed{5}",),  # an unfinished thought where the prompt has opened one
    (r"\boxed{6}", "</think>", r"\boxed{5}"),
    (r"\boxed{5}", "</think>", r"\boxed{6}"),
    (r"\boxed{5}", "</think>"),
]

# By the end of the prompt: whether each answer is the solution 5
JUDGED = {"opens": [0.0, 1.0, 0.0, 0.0], "closes": [1.0, 1.0, 0.0, 0.0], "none": [1.0, 1.0, 0.0, 0.0]}

FORMATTED = {"opens": [0.0, 1.0, 1.0, 1.0], "closes": [0.0] * 4, "none": [0.0] * 4}

ENDS = {"opens": "<think>\n", "closes": "<think>\n\n</think>\n\n", "none": ""}


@pytest.fixture(scope="module")
def thinker(tiny_model, tmp_path_factory) -> tuple:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.add_tokens(list(PIECES))
    tokenizer.chat_template = "{% for m in messages %}{{ m['content'] }}={% endfor %}{{ end }}"
    model = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    model.resize_token_embeddings(len(tokenizer))
    path = str(tmp_path_factory.mktemp("thinker"))
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path, tokenizer


def trainer_of(thinker, tmp_path, end, plain, rewards, **settings) -> CreditGRPOTrainer:
    path, tokenizer = thinker
    prompt = "12=" + ENDS[end] if plain else [{"role": "user", "content": "12"}]

    def rollout(prompts, trainer):
        ids, _, _ = trainer._tokenize_prompts(prompts)
        generated = [[*map(tokenizer.convert_tokens_to_ids, words), tokenizer.eos_token_id] for words in GENERATED]
        return {
            "prompt_ids": ids,
            "completion_ids": [generated[i % len(generated)] for i in range(len(prompts))],
            "logprobs": None,
        }

    kwargs = {} if plain else {"chat_template_kwargs": {"end": ENDS[end]}}
    return CreditGRPOTrainer(
        model=path,
        reward_funcs=rewards,
        args=config(tmp_path, per_device_train_batch_size=4, max_steps=1, **kwargs, **settings),
        train_dataset=Dataset.from_list([{"prompt": prompt, "solution": "5"}] * 4),
        rollout_func=rollout,
    )


@pytest.mark.parametrize("plain", [False, True], ids=["chat", "plain"])
@pytest.mark.parametrize("end", list(ENDS))
def test_training_and_evaluation_give_the_same_verdicts(thinker, tmp_path, end, plain):
    """Each reward of the package, in a run of the trainer, on the same tokens that the evaluation decodes."""
    trainer = trainer_of(thinker, tmp_path, end, plain, [judged, think_format, reasoning_accuracy, accuracy])
    trainer.train()
    found = {name: list(values)[:4] for name, values in trainer._logs["rewards"].items()}

    tokenizer = thinker[1]
    prompt = trainer.train_dataset[0]["prompt"]
    request = Request("t", 0, 0, 0, prompt)
    (item,) = render([request], tokenizer, {} if plain else {"end": ENDS[end]})
    texts = [
        to_generation(list(map(tokenizer.convert_tokens_to_ids, words)), True, item, tokenizer, ()).text
        for words in GENERATED
    ]
    assert [float(verdict.correct) for verdict in judge(texts, ["5"] * 4)] == JUDGED[end]
    assert found["judged"] == JUDGED[end]
    assert found["think_format_reward"] == FORMATTED[end]
    assert found["reasoning_accuracy_reward"] == [0.0, 1.0, 0.0, 0.0]
    # math-verify's own: the last box of the text, thought or not
    assert found["accuracy"] == [
        1.0,
        *accuracy([r"\boxed{6}</think>\boxed{5}", r"\boxed{5}</think>\boxed{6}"], ["5"] * 2),
        1.0,
    ]


def test_rounds_of_dynamic_sampling_see_it_too(thinker, tmp_path):
    seen = []

    def reward(completions, opened_tags, **kwargs):
        seen.append(opened_tags)
        return [float(i % 2) for i in range(len(completions))]

    trainer_of(thinker, tmp_path, "opens", False, reward, dynamic_sampling=True).train()
    assert seen == [["<think>"] * 4]


def test_only_functions_that_ask_get_the_tags(thinker, tmp_path):
    """One that names its arguments and takes no others is called as by TRL; none asks: no prompt is rendered again."""
    seen = {}

    def asks(completions, opened_tags=None, **kwargs):
        seen["asks"] = opened_tags
        return [float(i) for i in range(len(completions))]

    def takes_all(completions, **kwargs):
        seen["takes_all"] = sorted(kwargs)
        return [float(i) for i in range(len(completions))]

    trainer = trainer_of(thinker, tmp_path, "opens", False, [asks, takes_all])
    trainer.train()
    assert seen["asks"] == ["<think>"] * 4
    assert "opened_tags" not in seen["takes_all"]

    trainer = trainer_of(thinker, tmp_path, "opens", False, [takes_all])
    trainer._opened_tags = None  # calling it would fail
    trainer.train()


def test_inspection_tokenizes_what_the_model_generated(thinker, tmp_path):
    """A sample of an evaluation has the opened tag in front, and the rendered prompt has it already."""
    scorer = CreditScorer(thinker[0], {"uniform": build_credit("uniform")}, chat_template_kwargs={"end": "<think>\n"})
    prompt = [{"role": "user", "content": "12"}]
    with_tag, without = scorer.score(
        [Completion(prompt, text=r"<think>\boxed{5}</think>"), Completion(prompt, text=r"\boxed{5}</think>")]
    )
    assert with_tag.token_ids.tolist() == without.token_ids.tolist()
    assert with_tag.prompt.endswith("<think>\n")
