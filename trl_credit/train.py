"""Trains a recipe: `accelerate launch -m trl_credit.train --config recipes/NAME.yaml [--any_field value]`.

`trl-credit train recipes/NAME.yaml` does the same, also without `--config`. With `--accelerate_config FILE_OR_NAME` or
`--num_processes N` it launches several processes.
"""

import logging
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from accelerate import PartialState

from ._util.moved import moved_names
from ._util.text import log_to_terminal, prepare_terminal, safe, safe_lines
from .extras.checkpoints import ResumeError
from .extras.effect import NothingTrainedError
from .extras.machines import agreed_checkpoint
from .extras.reward_guard import RewardError, reported
from .recipe.adapters import continue_adapter
from .recipe.agreement import check_agreement, together
from .recipe.recipe import Recipe
from .samplers.pipelines import PipelineError


if TYPE_CHECKING:
    from .trainer.grpo import CreditGRPOTrainer


__getattr__ = moved_names("trl_credit.train")  # run as a script, it is named __main__


logger = logging.getLogger(__name__)


def main(argv: list[str] | None = None) -> "CreditGRPOTrainer":
    """Trains a recipe, saves the model, pushes it if asked, and returns the trainer.

    Errors in the recipe or its data print one line and exit with status 2, before a model is loaded if possible. A run
    that trains nothing, or whose numbers are not finite, saves no model and exits with status 1.
    """
    prepare_terminal()
    log_to_terminal()
    warnings.filterwarnings("ignore", message=".*gradient_checkpointing.*", category=FutureWarning)  # TRL sets it
    try:
        recipe = Recipe.read(sys.argv[1:] if argv is None else argv, description=__doc__)
        script_args, training_args, model_args, _ = recipe
        check_agreement(recipe)
        trainer_class = recipe.trainer
        arguments, evaluation = together(recipe.prepare)
        agreed_checkpoint(training_args.resume_from_checkpoint, training_args.output_dir)  # as the trainer will
        trainer = trainer_class(
            **continue_adapter(arguments, model_args, script_args.reward_model_name_or_path is not None)
        )
        if evaluation is not None:
            evaluation.attach(trainer)
    except (ValueError, TypeError, OSError, ImportError, NotImplementedError) as error:
        logger.debug("", exc_info=True)
        if PartialState().is_local_main_process:  # on every machine
            print(f"trl-credit train: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    with reported("trl-credit train"):
        _train(trainer, training_args.resume_from_checkpoint)
    trainer.save_model(training_args.output_dir)
    if trainer.updates_made or not (Path(training_args.output_dir) / "README.md").exists():
        trainer.create_model_card(dataset_name=script_args.dataset_name)
    trainer.accelerator.print(f"Model saved to {safe(training_args.output_dir)}.")
    if evaluation is not None:
        from ._util.files import RunFolderError
        from .evaluation.backends.base import BackendError

        try:
            evaluation.at_end()
        except (BackendError, RunFolderError) as error:
            if PartialState().is_main_process:
                print(f"trl-credit train: evaluation: error: {safe_lines(error)}", file=sys.stderr)
            _close(trainer)
            raise SystemExit(1) from error
    if training_args.push_to_hub:
        trainer.push_to_hub(dataset_name=script_args.dataset_name)
    _close(trainer)
    return trainer


def _train(trainer: "CreditGRPOTrainer", checkpoint: str | None) -> None:
    """Trains. An error that says what to do ends the process with a line and a status."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except SystemExit:  # after SIGTERM; the checkpoint is saved
        _close(trainer)
        raise
    except KeyboardInterrupt:
        if PartialState().is_main_process:
            print(
                f"\nStopped after update {trainer.state.global_step}. To continue from its last checkpoint, if any, run "
                "the same command with --resume_from_checkpoint auto.",
                file=sys.stderr,
            )
        raise
    except (ResumeError, NothingTrainedError, FloatingPointError) as error:
        logger.debug("", exc_info=True)
        if PartialState().is_local_main_process:  # on every machine
            print(f"trl-credit train: error: {safe_lines(error)} No model is saved.", file=sys.stderr)
        _close(trainer)
        raise SystemExit(2 if isinstance(error, ResumeError) else 1) from error
    except RewardError:
        for callback in trainer.callback_handler.callbacks:
            if (bar := getattr(callback, "training_bar", None)) is not None:
                bar.close()  # or it would be drawn once more below the error
        raise
    except (ImportError, PipelineError) as error:  # transformers looks for an optimizer's or kernel's package only now
        logger.debug("", exc_info=True)
        if PartialState().is_local_main_process:  # on every machine
            print(f"trl-credit train: error: {safe_lines(error)}", file=sys.stderr)
        _close(trainer)
        raise SystemExit(2) from error


def _close(trainer: "CreditGRPOTrainer") -> None:
    if hasattr(trainer, "end"):  # transformers >= 5.18: closes trackers and the process group
        trainer.end()


if __name__ == "__main__":
    main()
