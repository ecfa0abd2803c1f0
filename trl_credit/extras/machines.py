"""Resuming on several machines: one process chooses the checkpoint, and each must find there what it reads.

Machines share a disk, or under DDP each keeps checkpoints of its own (`save_on_each_node`). If they do neither, the
others have only the files of their own processes, and would fail while the first machine waits for them.
"""

import json
import socket
from pathlib import Path

from accelerate import PartialState
from accelerate.utils import broadcast_object_list, gather_object

from .checkpoints import (
    MANIFEST_NAME,
    STATE_NAME,
    ResumeError,
    asks_for_last,
    checkpoint_to_resume,
    is_model_only,
    names_read_by_all,
)


WAY_OUT = (
    "Let them share `output_dir`, or, except with DeepSpeed and FSDP, set `save_on_each_node: true` (then each machine must "
    "keep its rank)"
)


def agreed_checkpoint(asked: str | bool | None, output_dir: str) -> tuple[str | None, bool]:
    """The checkpoint to resume from that the main process chooses, by its path for this process.

    Args:
        asked: As for [`~trl_credit.extras.checkpoints.checkpoint_to_resume`].
        output_dir: Output folder of the run. It may have another path on another machine.

    Returns:
        The path, or `None` to start from the beginning, and whether the checkpoint holds only the model.

    Raises:
        ResumeError: There is none, it is damaged, or a process lacks files of it. The same error on every process.
    """
    state = PartialState()
    chosen, names, processes, model_only, error = None, [], None, False, None
    if state.is_main_process:  # other processes may see a shared folder's files later
        try:
            chosen = checkpoint_to_resume(asked, output_dir)
            if chosen is not None:
                names, processes = names_read_by_all(Path(chosen)), _processes(Path(chosen))
                model_only = is_model_only(Path(chosen))
        except Exception as caught:  # any error: the other processes must not wait forever
            error = str(caught) or type(caught).__name__
    chosen, names, processes, model_only, error = broadcast_object_list([chosen, names, processes, model_only, error])
    if error is not None:
        raise ResumeError(error)
    if chosen is None:
        return None, False
    path = Path(output_dir) / Path(chosen).name if asks_for_last(asked) else Path(str(asked))
    if processes == state.num_processes and not model_only:
        names = [*names, *own_names(state.process_index, state.num_processes)]
    missing = [name for name in names if not (path / name).exists()]
    found = gather_object([(state.process_index, socket.gethostname(), str(path), missing)])
    if lacking := [row for row in found if row[3]]:
        rank, host, where, missing = lacking[0]
        others = f", and {len(lacking) - 1} other processes lack some too" if len(lacking) > 1 else ""
        raise ResumeError(
            f"`resume_from_checkpoint`: process {rank} (on {host}) has no {', '.join(missing)} in {where!r}{others}, but "
            f"the first process has that checkpoint: the machines do not share a disk. {WAY_OUT}. To continue from this "
            "checkpoint, copy its files from every machine to every machine."
        )
    return str(path), model_only


def own_names(rank: int, processes: int) -> list[str]:
    """Names of the files that only one of several processes writes and reads, with whatever launcher."""
    return [f"rng_state_{rank}.pth", STATE_NAME.format(rank)] if processes > 1 else []


def _processes(checkpoint: Path) -> int | None:
    """How many processes wrote a checkpoint, if its manifest says so."""
    try:
        return json.loads((checkpoint / MANIFEST_NAME).read_text(encoding="utf-8")).get("processes")
    except OSError:
        return None
