"""`trl-credit bench --true`: samples, scores and writes."""

import json
import math
from pathlib import Path
from typing import Any

from ..._util.files import write_atomically
from ...report.page import clean
from .config import TrueConfig
from .report import sentences_of, write_markdown
from .results import Valued, results_of
from .samples import read_again, sampled
from .sampling import Progress


def run(config: TrueConfig, progress: Progress = lambda what, done, total: None) -> dict[str, Any]:
    """Does what the settings ask for, writes the files and returns the contents of bench_true.json.

    Raises:
        ValueError: A method, model, data or setting cannot be used.
        RunFolderError: The folder holds other samples, is in use, or cannot be written.
        BackendError: The backend cannot continue.
    """
    found = sampled(config, progress) if config.values is None else read_again(config)
    rows = [
        Valued(sample, values)
        for sample, values in zip(found.samples, found.values, strict=True)
        if math.isfinite(sample.advantage)
    ]
    if not rows:
        raise ValueError("No completion has a reward, so there is nothing to compare with.")
    results = results_of(config, found.scorer, rows, progress)
    results["settings"] |= found.about["settings"] | {"model": config.model}
    results["samples"]["completions_without_reward"] = len(found.samples) - len(rows)
    results["notes"] = found.about["notes"] + results["notes"]
    results = clean(results)
    results["sentences"] = sentences_of(results)
    folder = Path(config.output_dir)
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(folder / "bench_true.json", [json.dumps(results, indent=2, allow_nan=False) + "\n"])
    write_markdown(results, folder / "bench_true.md")
    return results
