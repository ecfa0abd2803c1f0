"""`trl-credit inspect`: shows the token credit of completions, under one or more methods.

    trl-credit inspect recipes/quickstart.yaml --model outputs/recipe-gcpo --reference trl_credit:quickstart
    trl-credit inspect --completions outputs/my-run/credit
    trl-credit inspect --model Qwen/Qwen2.5-1.5B-Instruct --prompts "What is 17 * 23?" --methods gcpo dgpo

Writes credit.html (a self-contained page), credit.parquet and credit.json, and prints the first completions. `--config
FILE` reads settings from a YAML file.
"""

import functools
import itertools
import sys

from .._util.quiet import quiet_libraries
from .._util.text import log_to_terminal, prepare_terminal, safe, safe_lines
from .._util.words import with_file_named
from .run import check_folder, inspect, write


def check_early(argv: list[str]) -> None:
    """Finds a recipe in the place of settings, and unknown methods and parameters, before torch and TRL are imported.

    Raises:
        ValueError, TypeError: What is wrong.
    """
    from ..methods.spec import check_spec
    from ..recipe.early import words_of

    fields = words_of(argv, "config file")
    if "config" in fields and "model_name_or_path" in fields:
        raise ValueError(f"`--config`: {fields['config']!r} is a recipe: write --recipe {fields['config']}.")
    if "--methods" in argv:
        start = argv.index("--methods") + 1
        for method in itertools.takewhile(lambda word: not word.startswith("--"), argv[start:]):
            check_spec(method)


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 2 for bad settings, data or models."""
    argv = with_file_named(sys.argv[1:] if argv is None else argv, "--recipe")
    prepare_terminal()
    log_to_terminal()
    try:
        check_early(argv)
        quiet_libraries()
        from .._util.arguments import parse_arguments
        from ..extras.reward_guard import reported
        from ..recipe.names import parameter_hint
        from .config import InspectConfig

        hint = functools.partial(parameter_hint, field="methods")
        (config,) = parse_arguments(argv, (InspectConfig,), "trl-credit inspect", __doc__, hint=hint)
        check_folder(config.output_dir)
        with reported("trl-credit inspect"):
            records, about = inspect(config)
        write(config, records, about)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"trl-credit inspect: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"{safe(config.output_dir)}: credit.html, credit.parquet, credit.json")


if __name__ == "__main__":
    main()
