"""The prompt stream of an iterable dataset."""

from helpers import prompts
from support.rollout import make


def test_an_iterable_stream_is_trls_order(tiny_model, tmp_path):
    seen = {}
    for dynamic in (False, True):
        rows = []

        def reward(prompts, completions, rows=rows, **kwargs):
            rows.extend(prompts)
            return [float(i) for i in range(len(prompts))]

        data = prompts(11).to_iterable_dataset()
        trainer = make(tiny_model, tmp_path, data, reward, dynamic_sampling=dynamic, max_steps=9)
        trainer.train()
        seen[dynamic] = rows
    assert seen[True] == seen[False]
    assert len(set(seen[True])) > 4  # more than one pass was made
