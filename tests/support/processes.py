"""Two processes that gather from each other, as threads."""

import threading
from dataclasses import replace

import torch

from trl_credit.methods.rollout import Rollout, SegmentValues


class Gathering:
    """A `gather` for each of several threads. Tensors of different shapes are an error, as between processes."""

    def __init__(self, count: int):
        self._sent: list = [None] * count
        self._barrier = threading.Barrier(count)

    def of(self, rank: int):
        def gather(tensor):
            self._sent[rank] = tensor
            self._barrier.wait(20)
            sent = list(self._sent)
            self._barrier.wait(20)
            assert len({part.shape for part in sent}) == 1, [part.shape for part in sent]
            return torch.cat(sent)

        return gather


def on_processes(rollout: Rollout, function, widths=(None, None)) -> list:
    """The results of `function` on each process's rollout, when the completions are dealt to equal parts in order.

    Args:
        rollout: All completions.
        function: Called with a process's rollout.
        widths: Columns of each process; the others must be off the mask.
    """
    gathering, rows = Gathering(len(widths)), len(rollout.mask) // len(widths)
    results: list = [None] * len(widths)
    errors = []

    def run(rank: int) -> None:
        def part(tensor):
            tensor = tensor[rank * rows : (rank + 1) * rows]
            return tensor[:, : widths[rank]] if tensor.dim() > 1 else tensor

        tensors = {name: part(value) for name, value in vars(rollout).items() if isinstance(value, torch.Tensor)}
        try:
            values = {
                request: SegmentValues(part(found.segments), found.values[rank * rows : (rank + 1) * rows])
                for request, found in rollout.values.items()
            }
            results[rank] = function(
                replace(rollout, **tensors, values=values, gather=gathering.of(rank), first=rank * rows)
            )
        except BaseException as error:  # raised below, in the test's thread
            errors.append(error)
            gathering._barrier.abort()

    threads = [threading.Thread(target=run, args=(rank,)) for rank in range(len(widths))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if errors:
        raise errors[0]
    return results
