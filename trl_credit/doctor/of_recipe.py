"""What is wrong with what a recipe names: files, servers, models and data."""

import os
import re
from collections.abc import Iterator
from pathlib import Path

from .._util.values import is_true
from .facts import Facts
from .hub import MISSING, Place, answers
from .needs import Needs
from .problem import Problem


_SERVE = (
    "VLLM_SERVER_DEV_MODE=1 vllm serve {model} --port {port} --tensor-parallel-size GPUS --max-model-len TOKENS "
    '--weight-transfer-config \'{{"backend": "nccl"}}\' '
    "--logprobs-mode processed_logprobs --max-logprobs -1"
)


def _files(facts: Facts, needs: Needs) -> Iterator[Problem]:
    for name, path in needs.code:
        if not os.path.isfile(os.path.expanduser(path)):
            yield Problem(
                f"`{name}`: there is no file {path!r}",
                f"Looked from {Path.cwd()}.",
                "correct the path, or change the folder",
                True,
            )
    if needs.output_dir is not None:
        try:
            from .._util.settings import check_output_dir

            check_output_dir(needs.output_dir)
        except ValueError as error:
            yield Problem(str(error), "Checkpoints go there.", "--output_dir FOLDER", True)
        except ImportError:  # pydantic is broken, which `_imports` tells
            return
    if needs.server is not None and not answers(needs.server):
        port = re.search(r":(\d+)$", needs.server)
        yield Problem(
            f"no vLLM server answers at {needs.server}",
            "Start it before the trainer, which waits for it (`vllm_server_timeout`).",
            _SERVE.format(port=port[1] if port else 8000, model=dict(needs.models).get("model_name_or_path", "MODEL")),
        )
    if needs.clash is not None:
        yield Problem(
            needs.clash,
            "transformers refuses the difference.",
            "--bf16 true, or on a CPU: --accelerate_config recipes/accelerate/ddp_cpu.yaml",
            True,
        )


def problems_of_place(place: Place, facts: Facts) -> Iterator[Problem]:
    hub = facts.machine.hub
    what = f"`{place.field}`: {place.name!r}"
    offline = hub.get("offline")
    if place.kind == "dataset" and (said := facts.machine.variables.get("HF_DATASETS_OFFLINE")) is not None:
        offline = is_true(said)  # in the place of the hub's
    if place.state == MISSING:
        yield Problem(
            f"{what} is not there", f"Looked from {Path.cwd()}.", "correct the path, or change the folder", True
        )
    elif place.on_hub and offline:
        command = f"HF_HUB_OFFLINE=0 hf download {place.name}" + " --repo-type dataset" * (place.kind == "dataset")
        yield Problem(f"{what} is {place.state}", "The hub is switched off (HF_HUB_OFFLINE).", command, True)
    elif place.on_hub and place.told:
        refused = re.search("Gated|401|403|Unauthorized", place.told)
        mend = (
            f"hf auth login, and accept the terms at {hub.get('address', 'the hub')}/{place.name}"
            if refused
            else ("check the name and the network (HTTPS_PROXY, HF_ENDPOINT)")
        )
        yield Problem(f"{what} is {place.state}, and the hub does not give it", f"{place.told}.", mend, True)


RULES = (_files,)
