"""`trl-credit doctor`: what is installed here, what is wrong with it, and the command that mends it.

    trl-credit doctor
    trl-credit doctor recipes/qwen2.5-7b/gcpo.yaml
    trl-credit doctor recipes/qwen2.5-7b/gcpo.yaml --accelerate_config fsdp2 --use_vllm false
    trl-credit doctor --needs gpu vllm --json

Takes seconds and loads no model. With a recipe it also looks for what that recipe asks for: packages, GPUs, bfloat16,
files, models and data. Fields on the command line replace the recipe's. The launcher is `--accelerate_config`, or what
the first launch line in the recipe's head names. Exits with 1 if something that was asked for, or trl-credit itself,
cannot work.
"""

import argparse
import json
import sys

from .._util.help import Paragraphs
from .._util.text import prepare_terminal, safe_lines
from . import hub as hub_
from .advice import problems
from .facts import collect
from .needs import NAMED, Needs, needs_of
from .problem import Problem
from .report import show, to_dict


PROGRAM = "trl-credit doctor"


def parse(argv: list[str]) -> tuple[argparse.Namespace, list[str]]:
    """The options, and the words that belong to the recipe."""
    # The recipe first: after `--needs` it would be one more of its names
    options = "[--needs NAME ...] [--accelerate_config FILE] [--num_processes N] [--hub] [--json]"
    usage = f"{PROGRAM} [RECIPE [--FIELD VALUE ...]] {options}"
    parser = argparse.ArgumentParser(
        prog=PROGRAM, usage=usage, description=__doc__, formatter_class=Paragraphs, allow_abbrev=False
    )
    parser.add_argument("recipe", nargs="?", help="a training recipe; its fields may follow: --use_vllm false")
    parser.add_argument(
        "--needs", nargs="+", choices=NAMED, default=[], metavar="NAME", help=f"what must work: {', '.join(NAMED)}"
    )
    parser.add_argument("--accelerate_config", help="the launcher's configuration, a file or a name, as of `train`")
    parser.add_argument(
        "--num_processes", type=int, help="processes of the launcher, in the place of its configuration's"
    )
    parser.add_argument("--hub", action="store_true", help="ask the hub whether it answers and gives what is not here")
    parser.add_argument("--json", action="store_true", help="print everything as JSON")
    argv = [word.removeprefix("--config=") for word in argv if word != "--config"]
    known, rest = parser.parse_known_args(argv)
    is_recipe = known.recipe is not None and (known.recipe == argv[0] or known.recipe.endswith((".yaml", ".yml")))
    if known.num_processes is not None and known.num_processes < 1:
        parser.error(f"--num_processes must be at least 1, and is {known.num_processes}.")
    if rest and not is_recipe:
        parser.error(f"{rest[0]} belongs to no recipe: name one first.")
    if rest and not rest[0].startswith("-"):
        parser.error(f"{rest[0]} is one word too many: doctor looks at one recipe at a time.")
    return known, rest


def main(argv: list[str] | None = None) -> None:
    """Runs the command. Exits with 1 if something that was asked for cannot work, and with 2 for a bad recipe."""
    prepare_terminal()
    options, rest = parse(sys.argv[1:] if argv is None else argv)
    needs = Needs()
    for name in options.needs:
        needs += NAMED[name]
    try:
        if options.recipe is not None:
            needs = (
                needs_of(["--config", options.recipe, *rest], options.accelerate_config, options.num_processes) + needs
            )
    except (ValueError, TypeError, OSError) as error:
        print(f"{PROGRAM}: error: {safe_lines(error)}", file=sys.stderr)
        raise SystemExit(2) from error
    facts = collect(needs.packages)
    asked = options.hub and not facts.machine.hub.get("offline")
    reached = hub_.reachable() if asked else None
    places = [
        hub_.find(name, value, kind, ask=bool(asked) and reached == "")
        for kind, named in (("model", needs.models), ("dataset", needs.data))
        for name, value in named
    ]
    found = problems(facts, needs, places)
    if reached:
        remote = any(place.on_hub for place in places)
        mend = "check the network (HTTPS_PROXY, HF_ENDPOINT), or HF_HUB_OFFLINE=1 with everything in the cache"
        found.insert(0, Problem("the hub does not answer", f"{reached}.", mend, remote))
    if options.json:
        print(json.dumps(to_dict(facts, needs, places, found, reached), indent=2))
    else:
        show(facts, needs, places, found, reached)
    if any(problem.needed for problem in found):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
