"""One recipe for all processes: launched on several machines, each reads its own copy and has its own packages."""

import socket
from collections.abc import Callable
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from accelerate import PartialState
from accelerate.utils import gather_object

from .._version import __version__


if TYPE_CHECKING:
    from .recipe import Recipe

# Fields that may differ between processes: where files lie, what is shown, and how a server or hub is reached
_OWN = {
    *("output_dir", "resume_from_checkpoint", "run_name", "hub_token", "local_rank"),
    *("disable_tqdm", "log_level", "log_level_replica", "report_to", "project"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id"),
    *("dataloader_num_workers", "dataloader_prefetch_factor", "dataloader_persistent_workers"),
    *("vllm_server_host", "vllm_server_port", "vllm_server_base_url", "vllm_group_port"),
    *("model_name_or_path", "dataset_name", "eval_dataset_name", "reward_model_name_or_path", "compare"),
}
_PACKAGES = ("trl", "transformers", "torch")


def check_agreement(recipe: "Recipe") -> None:
    """Checks that every process has the same settings and versions.

    Otherwise they would wait for each other in different places, or each train something else and average that.

    Raises:
        ValueError: On every process, with the fields that differ.
    """
    state = PartialState()
    if state.num_processes == 1:
        return
    # As text, which crosses between processes whatever a value is
    own = {f"`{name}`": repr(value) for name, value in recipe.fields().items() if name not in _OWN}
    own["the version of trl-credit"] = __version__
    own |= {f"the version of {name}": version(name) for name in _PACKAGES}
    raise_differences(gather_object([own]))


def together(function: Callable[[], Any]) -> Any:
    """What `function` returns, if it raises on no process. Where it does, all raise, so that none waits for the others.

    Raises:
        ValueError: It raised on another process, as a file may be missing on one machine. The message is that error's.
    """
    state, result, caught = PartialState(), None, None
    try:
        result = function()
    except (ValueError, TypeError, OSError, ImportError) as error:
        caught = error
    if state.num_processes == 1 and caught is not None:
        raise caught
    told = [(state.process_index, socket.gethostname(), caught and (str(caught) or type(caught).__name__))]
    failed = [row for row in gather_object(told) if row[2]]
    if caught is not None:
        raise caught
    if failed:
        rank, host, message = failed[0]
        raise ValueError(f"process {rank}, on {host}: {message}")
    return result


def raise_differences(settings: list[dict[str, Any]]) -> None:
    """Raises `ValueError` if a process's settings differ from the first one's; names each and the processes."""
    first, problems = settings[0], []
    for name in dict.fromkeys(name for each in settings for name in each):
        others = [rank for rank, each in enumerate(settings) if each.get(name) != first.get(name)]
        if others:
            problems.append(
                f"{name} is {first.get(name, 'unknown')} on process 0, but {settings[others[0]].get(name, 'unknown')} on "
                f"{'process' if len(others) == 1 else 'processes'} {_ranges(others)}"
            )
    if problems:
        raise ValueError(
            f"The processes of this run differ: {'; '.join(problems)}. Start the same recipe, with the same overrides and "
            "the same packages, on every machine."
        )


def _ranges(numbers: list[int]) -> str:
    """Increasing numbers as text: `1, 8-15`."""
    parts: list[list[int]] = []
    for number in numbers:
        if parts and number == parts[-1][1] + 1:
            parts[-1][1] = number
        else:
            parts.append([number, number])
    return ", ".join(str(low) if low == high else f"{low}-{high}" for low, high in parts)
