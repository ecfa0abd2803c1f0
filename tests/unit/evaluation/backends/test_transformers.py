"""Samples of the transformers backend."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from helpers import save_tiny_model
from support.generation import requests_for
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.evaluation import EvalConfig, evaluate
from trl_credit.evaluation.backends.base import BackendError, SamplingSettings
from trl_credit.evaluation.backends.transformers import TransformersBackend, _SeededSampling, cut_at_stop
from trl_credit.evaluation.run import make_backend
from trl_credit.model_files import LocalModel


SAMPLING = SamplingSettings(temperature=1.0, max_tokens=12)


def generate(model, requests, sampling=SAMPLING, **arguments):
    backend = TransformersBackend(LocalModel.find(model), **arguments)
    sampling = backend.prepare(requests, sampling)
    found = {}
    backend.generate(requests, sampling, lambda request, generation: found.update({request.key: generation}))
    return found


def distribution(logits, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):
    """Probabilities after temperature, top-k, top-p and min-p, in this order, by their definitions."""
    logits = np.asarray(logits, dtype=np.float64) / temperature
    p = np.exp(logits - logits.max())
    p /= p.sum()
    order = np.argsort(-p)
    if top_k:
        p[order[top_k:]] = 0
        p /= p.sum()
    if top_p < 1:
        before = np.cumsum(p[order]) - p[order]  # the mass of the likelier ones
        p[order[before >= top_p]] = 0
        p /= p.sum()
    p[p < min_p * p.max()] = 0
    return p / p.sum()


@pytest.mark.parametrize(
    "settings",
    [
        {"temperature": 1.0},
        {"temperature": 0.6},
        {"temperature": 1.0, "top_p": 0.7},
        {"temperature": 1.3, "top_p": 0.9, "top_k": 5},
        {"temperature": 2.0, "min_p": 0.2},
    ],
)
def test_samples_have_the_asked_for_distribution(tiny_model, settings):
    """Frequencies of the first token over 3,000 seeds, against the definition in float64."""
    n = 3000
    prompt = "12+34="
    found = generate(tiny_model, requests_for([prompt], n), SamplingSettings(max_tokens=1, **settings), batch_size=1000)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    with torch.no_grad():
        logits = model(**tokenizer(prompt, return_tensors="pt")).logits[0, -1]
    expected = distribution(logits, **settings)
    texts = [tokenizer.decode([token], skip_special_tokens=True) for token in range(len(expected))]
    by_text = {text: sum(p for p, other in zip(expected, texts, strict=True) if other == text) for text in texts}
    counts = dict.fromkeys(by_text, 0)
    for generation in found.values():
        counts[generation.text] += 1
    assert sum(p > 0 for p in by_text.values()) > 1
    for text, p in by_text.items():
        # 4.5 standard deviations, and one count for the rare ones
        assert abs(counts[text] - n * p) <= 4.5 * np.sqrt(n * p * (1 - p)) + 1, (text, counts[text] / n, p)


def test_a_token_without_probability_is_never_taken():
    """Also at the ends of the interval, whatever the uniform number."""
    scores = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]] * 3)
    sampler = _SeededSampling([0, 0, 0], 1, torch.device("cpu"))
    sampler.uniforms[:, 0] = torch.tensor([0.0, 0.5, 1 - 2**-53], dtype=torch.float64)
    chosen = sampler(None, scores)
    assert chosen.argmax(-1).tolist() == [1, 3, 3]
    assert (chosen == 0).sum() == 3


def test_each_sample_is_handed_on_once(tiny_model, tmp_path):
    """Also where rows are padded with the end of sequence, as by SmolLM2."""
    path = shutil.copytree(tiny_model, tmp_path / "m")
    settings = json.loads((path / "tokenizer_config.json").read_text())
    (path / "tokenizer_config.json").write_text(json.dumps({**settings, "pad_token": settings["eos_token"]}))
    backend = TransformersBackend(LocalModel.find(str(path)))
    assert backend.tokenizer.pad_token_id == backend.tokenizer.eos_token_id
    requests, keys = requests_for(["1=", "12="], n=10), []
    backend.generate(requests, replace(SAMPLING, max_tokens=60), lambda request, _: keys.append(request.key))
    assert sorted(keys) == sorted(request.key for request in requests)


def test_greedy_is_transformers_greedy(tiny_model):
    found = generate(tiny_model, requests_for(["12+34=", "5="]), SamplingSettings(temperature=0.0, max_tokens=20))
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    for number, prompt in enumerate(["12+34=", "5="]):
        ids = tokenizer(prompt, return_tensors="pt")
        output = model.generate(**ids, do_sample=False, max_new_tokens=20)[0, ids["input_ids"].shape[1] :]
        assert found["t", number, 0].text == tokenizer.decode(output, skip_special_tokens=True)


def test_token_ids_are_continued_as_their_text_is(tiny_model):
    """With their own limits, which change nothing but the length, whatever else is in the batch."""
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    texts = requests_for(["12+34=", "5="], n=6)
    ids = [replace(request, prompt=tuple(tokenizer(request.prompt)["input_ids"])) for request in texts]
    assert all(request.has_token_ids for request in ids)
    long, same = generate(tiny_model, texts), generate(tiny_model, ids)
    assert long == same
    for key, generation in same.items():
        assert tokenizer.decode(generation.ids, skip_special_tokens=True) == generation.text
        assert len(generation.ids) == long[key].tokens
    limited = [replace(request, max_tokens=1 + number % 5) for number, request in enumerate(ids)]
    for request, generation in ((r, generate(tiny_model, limited)[r.key]) for r in limited):
        whole = long[request.key]
        assert generation.ids == whole.ids[: request.max_tokens]
        assert generation.finish == ("length" if whole.tokens > request.max_tokens else whole.finish)
    above = [replace(request, max_tokens=500) for request in ids]
    assert generate(tiny_model, above) == same  # the settings' limit holds


def test_a_repetition_penalty_is_applied(tiny_model):
    settings = SamplingSettings(temperature=0.0, max_tokens=20, repetition_penalty=5.0)
    found = generate(tiny_model, requests_for(["12+34="]), settings)
    tokenizer, model = AutoTokenizer.from_pretrained(tiny_model), AutoModelForCausalLM.from_pretrained(tiny_model)
    ids = tokenizer("12+34=", return_tensors="pt")
    output = model.generate(**ids, do_sample=False, max_new_tokens=20, repetition_penalty=5.0)[0, 6:]
    assert found["t", 0, 0].text == tokenizer.decode(output, skip_special_tokens=True)
    assert found != generate(tiny_model, requests_for(["12+34="]), replace(settings, repetition_penalty=1.0))


def test_samples_do_not_depend_on_the_batch(tiny_model):
    requests = requests_for(["1=", "12+34=", "99+99+99="], n=5)
    one = generate(tiny_model, requests, batch_size=1)
    for other in (
        generate(tiny_model, requests, batch_size=4),
        generate(tiny_model, requests[::-1], batch_size=15),
        generate(tiny_model, requests[7:], batch_size=3),
    ):
        assert other == {key: one[key] for key in other}
    assert len({generation.text for generation in one.values()}) > 10
    assert generate(tiny_model, requests_for(["1="], seed=5)) != generate(tiny_model, requests_for(["1="]))


def test_finished_samples_are_handed_on_at_once(tiny_model):
    """Also within a batch: before its longest sample is done."""
    requests = requests_for(["1=", "12="], n=20)
    backend = TransformersBackend(LocalModel.find(tiny_model), batch_size=40)
    lengths = []
    sampling = SamplingSettings(temperature=1.5, max_tokens=60)
    backend.generate(requests, sampling, lambda request, generation: lengths.append(generation.tokens))
    assert lengths == sorted(lengths)
    assert lengths[0] < 60

    class Stop(Exception):  # noqa: N818
        pass

    def stop(request, generation):
        raise Stop

    with pytest.raises(Stop):
        backend.generate(requests, sampling, stop)


def test_the_global_random_state_is_left_alone(tiny_model):
    torch.manual_seed(3)
    generate(tiny_model, requests_for(["1="], n=3))
    after = torch.rand(3)
    torch.manual_seed(3)
    # Loading a model initialises nothing at random
    assert torch.equal(after, torch.rand(3))


def test_ends_and_lengths(tiny_model):
    found = generate(tiny_model, requests_for(["1="], n=60), replace(SAMPLING, temperature=1.5, max_tokens=9))
    kinds = {generation.finish for generation in found.values()}
    assert kinds == {"stop", "length"}
    for generation in found.values():
        if generation.finish == "length":
            assert generation.tokens == 9 >= len(generation.text)  # special tokens are no text
        else:
            assert len(generation.text) + 1 <= generation.tokens <= 9  # with the end of sequence


def test_stop_texts(tiny_model):
    plain = generate(tiny_model, requests_for(["1="], n=40), replace(SAMPLING, max_tokens=40))
    stopped = generate(tiny_model, requests_for(["1="], n=40), replace(SAMPLING, max_tokens=40, stop=("+", "3=")))
    cut = 0
    for key, generation in stopped.items():
        whole = plain[key].text
        places = [place for place in (whole.find("+"), whole.find("3=")) if place >= 0]
        assert generation.text == (whole[: min(places)] if places else whole)
        if places:
            cut += 1
            assert generation.finish == "stop"
            assert generation.tokens < plain[key].tokens or plain[key].tokens <= min(places) + 2
    assert cut >= 5
    assert cut_at_stop("abcabd", ("bd", "c")) == "ab"


def test_a_stop_text_is_the_completions_alone(tiny_model):
    """Not the end of the prompt and its beginning, as vLLM has it."""
    requests = requests_for(["1="], n=30)
    plain = generate(tiny_model, requests, replace(SAMPLING, max_tokens=20))
    first = plain["t", 0, 0].text[0]
    stopped = generate(tiny_model, requests, replace(SAMPLING, max_tokens=20, stop=(f"={first}",)))
    assert len(stopped["t", 0, 0].text) > 1 or plain["t", 0, 0].tokens == 1
    for key, generation in plain.items():
        if f"={first}" not in generation.text:
            assert stopped[key] == generation


@pytest.mark.parametrize(
    "fields",
    [
        {
            "suppress_tokens": list(range(3, 20)),
            "repetition_penalty": 3.0,
            "temperature": 0.1,
            "top_k": 1,
            "do_sample": True,
        },
        {"no_repeat_ngram_size": 1, "bad_words_ids": [[5]], "exponential_decay_length_penalty": [1, 5.0]},
        {"num_return_sequences": 2, "num_beams": 2, "forced_eos_token_id": 1, "max_time": 0.0},
        {"stop_strings": ["1"], "prompt_lookup_num_tokens": 3},
    ],
)
@pytest.mark.parametrize("lora", [False, True])
def test_a_models_own_generation_config_changes_nothing(tiny_model, lora_adapter, fields, lora):
    requests = requests_for(["1=", "12+34="], n=6)
    backend = TransformersBackend(LocalModel.find(lora_adapter[0] if lora else tiny_model))
    backend.model = backend.load()
    found = {}
    for number in range(2):
        backend.generate(requests, SAMPLING, lambda r, g, number=number: found.update({(number, r.key): g}))
        base = backend.model.get_base_model() if lora else backend.model
        assert number == 0 or base.generation_config.to_dict().items() >= fields.items()  # it is its own again
        for name, value in fields.items():
            setattr(base.generation_config, name, value)
    assert all(found[0, request.key] == found[1, request.key] for request in requests)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_broken_weights_end_the_run(tiny_model, temperature):
    backend = TransformersBackend(LocalModel.find(tiny_model))
    backend.model = backend.load()
    with torch.no_grad():
        backend.model.model.norm.weight.fill_(float("nan"))
    with pytest.raises(BackendError, match="The model's logits are NaN"):
        backend.generate(requests_for(["1="]), replace(SAMPLING, temperature=temperature), lambda *_: None)


def test_max_tokens_is_cut_to_the_context(tmp_path, caplog):
    model = save_tiny_model(tmp_path / "m", context=20)
    requests = requests_for(["1=", "12+34=", "1+1="])
    backend = TransformersBackend(LocalModel.find(model))
    assert backend.prepare(requests, SamplingSettings(temperature=1.0, max_tokens=50)).max_tokens == 14
    assert "`max_tokens` is cut from 50 to 14" in caplog.text
    assert backend.prepare(requests, SamplingSettings(temperature=1.0, max_tokens=14)).max_tokens == 14
    with pytest.raises(ValueError, match=r"problem 1, has 22 tokens, and the model's context 20"):
        backend.prepare(requests_for(["1=", "12+34=" * 3 + "1+1="]), SAMPLING)


def test_a_thinking_tag_that_the_template_opens_belongs_to_the_text(tiny_model, tmp_path):
    path = shutil.copytree(tiny_model, tmp_path / "m")
    (path / "chat_template.jinja").write_text("{{ messages[0]['content'] }}<think>\n")
    found = generate(str(path), requests_for([({"role": "user", "content": "1+1"},)]))
    assert found["t", 0, 0].text.startswith("<think>")


def test_an_adapter_is_applied_without_merging(tiny_model, lora_adapter):
    path, merged = lora_adapter
    requests = requests_for(["1=", "12+34="], n=4)
    found = generate(path, requests)
    assert found == generate(merged, requests)
    assert found != generate(tiny_model, requests)
    backend = TransformersBackend(LocalModel.find(path))
    assert type(backend.load()).__name__.startswith("PeftModel")
    assert set(backend.identity()) >= {"model", "adapter"}


def test_on_a_cpu_auto_is_float32(tiny_model):
    assert TransformersBackend(LocalModel.find(tiny_model)).identity()["dtype"] == "float32"


def test_without_a_gpu_auto_is_transformers(tiny_model, fake_vllm):
    assert make_backend(EvalConfig(model=tiny_model)).name == "transformers"
    with pytest.raises(ValueError, match="`vllm_kwargs` has no effect with the backend 'transformers'"):
        make_backend(EvalConfig(model=tiny_model, vllm_kwargs={"a": 1}))


def test_a_run_continues_with_another_batch_size(tiny_model, tmp_path):
    path = tmp_path / "x.jsonl"
    path.write_text("".join(json.dumps({"problem": f"{i}+1=", "answer": str(i + 1)}) + "\n" for i in range(4)))
    settings = {"model": tiny_model, "tasks": [str(path)], "n": 6, "max_tokens": 30, "report": False}
    settings |= {"plain_prompts": True, "prompt_template": "{problem}"}
    evaluate(EvalConfig(**settings, output_dir=str(tmp_path / "a"), batch_size=24))
    config = EvalConfig(**settings, output_dir=str(tmp_path / "b"), batch_size=5)
    evaluate(config)
    samples = tmp_path / "b" / "samples.jsonl"
    lines = samples.read_text().splitlines(keepends=True)
    samples.write_text("".join(lines[3:17]))
    evaluate(config)
    assert samples.read_bytes() == (tmp_path / "a" / "samples.jsonl").read_bytes()
