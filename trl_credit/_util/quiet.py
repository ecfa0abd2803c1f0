"""Quiets the libraries beneath a command, so that what it prints is its own."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Leaves transformers, datasets and TRL their errors only, without progress bars, and hides FutureWarnings (of
    transformers, about TRL's own settings)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
