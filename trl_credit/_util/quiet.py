"""Quiets the libraries under a command, so that only its own output is printed."""

import logging
import os
import warnings


def quiet_libraries() -> None:
    """Limits transformers, datasets and TRL to errors, without progress bars, and hides FutureWarnings (transformers'
    about TRL's own settings)."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    warnings.filterwarnings("ignore", category=FutureWarning)
    import datasets
    from transformers.utils import logging as transformers_logging

    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    logging.getLogger("trl").setLevel(logging.ERROR)
