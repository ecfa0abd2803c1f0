"""A reward function under which a machine stops at once, as one that loses its power does."""

import os
import signal

from accelerate import PartialState

from trl_credit.toy.arithmetic import correct_answer


def reward(completions, answer, trainer_state, **kwargs):
    """Kills the last process and its launcher in the rollout of update `DIES_AT`, if that is set."""
    if os.environ.get("DIES_AT") == str(trainer_state.global_step + 1):
        state = PartialState()
        if state.process_index == state.num_processes - 1:
            os.kill(os.getppid(), signal.SIGKILL)
            os.kill(os.getpid(), signal.SIGKILL)
    return correct_answer(completions, answer)
