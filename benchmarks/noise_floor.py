"""Measures how much log-probs change with the left padding alone, which is the noise under GCPO's contrast.

    python benchmarks/noise_floor.py [--model PATH] [--prompts TEXT ...] [--new_tokens N]

Prints for each dtype the median, 99th percentile and maximum of |difference| in log-probs over tokens and paddings,
next to the noise floor that GCPO uses for the dtype.
"""

import argparse

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from trl_credit.methods.gcpo import noise_floor_of
from trl_credit.model_files import embedded_model_path
from trl_credit.toy.arithmetic import make_dataset


def log_probs(model, prompt: list[int], completion: list[int], pads: int) -> torch.Tensor:
    """(T,) log-probs of the completion's tokens with `pads` left pads and no position ids, as TRL computes them."""
    ids = torch.tensor([[0] * pads + prompt + completion])
    mask = torch.tensor([[0] * pads + [1] * (len(prompt) + len(completion))])
    with torch.no_grad():
        logits = model(input_ids=ids, attention_mask=mask).logits[0, -len(completion) - 1 : -1].float()
    return torch.log_softmax(logits, -1).gather(1, torch.tensor(completion).unsqueeze(1)).squeeze(1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=embedded_model_path())
    parser.add_argument("--prompts", nargs="+", help="by default problems of the quickstart's task")
    parser.add_argument("--new_tokens", type=int, default=32)
    arguments = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(arguments.model)
    prompts = arguments.prompts or make_dataset(8, seed=5)["prompt"]
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        model = AutoModelForCausalLM.from_pretrained(arguments.model, dtype=dtype).eval()
        differences = []
        for seed, text in enumerate(prompts):
            prompt = tokenizer(text)["input_ids"]
            torch.manual_seed(seed)
            ids = model.generate(torch.tensor([prompt]), do_sample=True, top_k=0, max_new_tokens=arguments.new_tokens)
            completion = ids[0, len(prompt) :].tolist()
            base = log_probs(model, prompt, completion, 0)
            differences += [log_probs(model, prompt, completion, pads) - base for pads in (1, 7, 16, 33, 64)]
        values = torch.cat(differences).abs()
        print(
            f"{str(dtype).removeprefix('torch.'):9} median {values.median():.1e}   99 % {values.quantile(0.99):.1e}   "
            f"largest {values.max():.1e}   noise floor {noise_floor_of(dtype):.0e}"
        )


if __name__ == "__main__":
    main()
