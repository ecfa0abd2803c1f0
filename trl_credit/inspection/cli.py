"""`trl-credit inspect`: shows the token credit of completions, under one or more methods.

    trl-credit inspect --recipe recipes/quickstart.yaml --model outputs/recipe-gcpo --reference trl_credit:quickstart
    trl-credit inspect --completions outputs/my-run/credit
    trl-credit inspect --model Qwen/Qwen2.5-1.5B-Instruct --prompts "What is 17 * 23?" --methods gcpo dgpo

Writes credit.html (a self-contained page), credit.parquet and credit.json, and prints the first completions. `--config
FILE` reads settings from a YAML file.
"""

import sys

from .._util.quiet import quiet_libraries
from .._util.text import log_to_terminal, prepare_terminal, safe, safe_lines
from .run import check_folder, inspect, write


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 2 for bad settings, data or models."""
    argv = sys.argv[1:] if argv is None else argv
    prepare_terminal()
    log_to_terminal()
    from .._util.arguments import parse_arguments
    from ..recipe.names import parameter_hint
    from .config import InspectConfig

    quiet_libraries()
    try:
        (config,) = parse_arguments(argv, (InspectConfig,), "trl-credit inspect", __doc__, hint=parameter_hint)
        check_folder(config.output_dir)
        records, about = inspect(config)
        write(config, records, about)
    except (ValueError, TypeError, OSError, ImportError) as error:
        print(f"trl-credit inspect: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    print(f"{safe(config.output_dir)}: credit.html, credit.parquet, credit.json")


if __name__ == "__main__":
    main()
