"""Settings of `trl-credit plan`."""

from dataclasses import dataclass, field
from typing import Annotated

from annotated_types import Ge, Le, Lt

from .._util.settings import AtLeast1, Finite, Unchecked, Whole, check_fields, one_of
from .cards import CARDS
from .layouts import LAYOUTS


@dataclass
class PlanConfig:
    """
    Settings of `trl-credit plan`, besides the fields of the recipe.
    """

    gpus: Annotated[Whole, Ge(1), Le(100_000)] = field(
        default=8,
        metadata={"help": "GPUs that train, on all machines together. The batch grows with them, as in the run."},
    )
    gpu: Annotated[str, Unchecked] = field(
        default="h100",
        metadata={
            "help": f"The GPU: {', '.join(CARDS)}; or its numbers, "
            "'{memory: 80e9, flops: 989e12, bandwidth: 3.35e12, link: 900e9}'."
        },
    )
    gpus_per_machine: AtLeast1 = field(default=8, metadata={"help": "GPUs of a machine."})
    layout: one_of("auto", *LAYOUTS) = field(
        default="auto",
        metadata={"help": "The layout; by default the first that fits, those with little traffic first."},
    )
    prompt_tokens: AtLeast1 = field(default=512, metadata={"help": "Tokens of a prompt."})
    mean_completion_tokens: AtLeast1 | None = field(
        default=None,
        metadata={"help": "Mean tokens of a completion, for the times; by default `max_completion_length`."},
    )
    zero_advantage: Annotated[Finite, Ge(0), Lt(1)] = field(
        default=0.0, metadata={"help": "Share of the completions whose group is all right or all wrong, for the times."}
    )
    steps: AtLeast1 | None = field(
        default=None,
        metadata={"help": "Steps of a completion, for methods that continue it from each of them; by default 10."},
    )
    engine_gpus: AtLeast1 | None = field(
        default=None, metadata={"help": "GPUs of the vLLM server, if there is one; by default one machine's."}
    )
    json: bool = field(default=False, metadata={"help": "Print the plan as JSON."})
    output_file: str | None = field(default=None, metadata={"help": "Also write the plan to this file, as JSON."})

    def __post_init__(self):
        check_fields(self)
