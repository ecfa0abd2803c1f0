"""TRL members that this package relies on; a failure names the one that moved."""

import ast
import contextlib
import importlib
import inspect
import re
from pathlib import Path

import pytest
from transformers import Trainer
from trl import GRPOTrainer
from trl.trainer import utils
from trl.trainer.callbacks import SyncRefModelCallback

import trl_credit
from trl_credit import Uniform, _trl
from trl_credit._trl import LEANED_ON, NAMES
from trl_credit.batching import COMPLETION_KEYS, IMAGE_KEYS, PROMPT_KEYS, SEQUENCE_KEYS
from trl_credit.signals.models import FORWARD_KEYS


# Public methods that are overridden
METHODS = {
    "get_train_dataloader": [],
    "compute_loss": ["model", "inputs", "return_outputs", "num_items_in_batch"],
    "train": ["resume_from_checkpoint", "trial", "ignore_keys_for_eval"],
    "create_model_card": ["model_name", "dataset_name", "tags"],
    **{name: list(leaned.parameters) for name, leaned in LEANED_ON.items() if leaned.parameters is not None},
}

FUNCTIONS = {
    utils.RepeatSampler.__init__: [
        "self",
        "data_source",
        "mini_repeat_count",
        "batch_size",
        "repeat_count",
        "shuffle",
        "seed",
    ],
    utils.repeat_iterable_dataset: ["dataset", "mini_repeat_count", "batch_size", "repeat_count"],
    utils.get_callable_name: ["func"],
    utils.is_async_callable: ["func"],
    utils.create_model_from_path: ["model_id", "architecture", "kwargs"],
    utils.get_config_model_id: ["config"],
    utils.maybe_gather_lm_head_ctx: ["params"],
    utils.pad: ["tensors", "padding_value", "padding_side", "pad_to_multiple_of"],
    utils.split_pixel_values_by_grid: ["batch"],
    utils.unsplit_pixel_values_by_grid: ["batch"],
    utils.use_adapter: ["model", "adapter_name"],
    SyncRefModelCallback.__init__: ["self", "ref_model", "accelerator"],
}


def check(function, expected):
    parameters = list(inspect.signature(function).parameters)
    assert parameters == expected, (
        f"TRL's {function.__qualname__} now takes {parameters}, trl-credit was written for {expected}: see what changed "
        "before widening the tested range in trl_credit/_version.py"
    )


@pytest.mark.parametrize("name", METHODS)
def test_methods(name):
    check(getattr(GRPOTrainer, name), ["self", *METHODS[name]])


def private_members():
    """Every private method and attribute of TRL's trainer and its bases."""
    found = set()
    for owner in GRPOTrainer.__mro__[:-1]:
        found |= {name for name in vars(owner) if name.startswith("_") and not name.startswith("__")}
        with contextlib.suppress(OSError, TypeError):
            found |= set(re.findall(r"self\.(_[a-z]\w*)\b", inspect.getsource(owner)))
    return found


def test_private_members_stand_in_the_table():
    """And nothing stands there that is not used, or not there."""
    package = Path(trl_credit.__file__).parent
    used = set()
    for folder in ("extras", "trainer", "recipe", "inspection", "signals"):
        for path in (package / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute | ast.FunctionDef):
                    used.add(node.attr if isinstance(node, ast.Attribute) else node.name)
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):  # replaced by name
                    used.add(node.value)
    there = private_members()
    assert set(LEANED_ON) - there == set()
    assert (used & there) - set(LEANED_ON) == set()
    assert set(LEANED_ON) - used == set()


@pytest.mark.parametrize("name", NAMES)
def test_names(name):
    assert getattr(_trl, name) is getattr(importlib.import_module(NAMES[name]), name)


def test_only_the_seam_imports_trl():
    package = Path(trl_credit.__file__).parent
    for path in package.rglob("*.py"):
        place = path.relative_to(package)
        if place.parts[0] in ("_trl.py", "extras", "trainer", "recipe") or place.name == "_worker.py":
            continue
        assert not re.search(r"^\s*(from|import) trl\b", path.read_text(), re.MULTILINE), place


@pytest.mark.parametrize("function", FUNCTIONS, ids=lambda f: f.__qualname__)
def test_functions(function):
    check(function, FUNCTIONS[function])


def test_forward_keys_are_what_the_forward_takes_besides_text():
    parameters = tuple(inspect.signature(GRPOTrainer._get_per_token_logps_and_entropies).parameters)
    assert parameters[8:] == FORWARD_KEYS


def test_loss_reads_the_batch_after_its_own_forward():
    """Token advantages are written into the batch during the policy's forward, so the loss must read them after it, and
    accept (B, T)."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert source.index("self._get_per_token_logps_and_entropies(") < source.index('inputs["advantages"]')
    assert source.count("self._get_per_token_logps_and_entropies(") == 1
    assert "advantages.dim() == 1" in source


def test_a_generation_batch_is_buffered_whole():
    """Its micro-batches are planned together, when TRL has replaced its buffer."""
    source = inspect.getsource(GRPOTrainer._prepare_inputs)
    assert "self._buffered_inputs = " in source
    assert "self._buffered_inputs[self._step % self.args.steps_per_generation]" in source


def test_what_the_loss_reads_of_the_batch_is_cut_with_it():
    """A key of TRL's batch that batching.py does not know would keep its width, or its rows."""
    known = {*PROMPT_KEYS, *COMPLETION_KEYS, *SEQUENCE_KEYS, *IMAGE_KEYS, "advantages", "num_items_in_batch"}
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    made = set(re.findall(r'output\["(\w+)"\]', source.split("output = {")[1]))
    made |= set(re.findall(r'^ +"(\w+)":', source.split("output = {")[1].split("}")[0], re.MULTILINE))
    read = set(re.findall(r'inputs(?:\.get\(|\[)"(\w+)"', inspect.getsource(GRPOTrainer._compute_loss)))
    assert {"advantages", "completion_mask", "num_items_in_batch"} <= made
    assert (made | read) - known == set()


def test_the_rollout_is_prepared_before_it_is_generated():
    """A further round of dynamic sampling ends where TRL has generated: nothing that costs is done before, and what came
    before (environments, images) is kept by row."""
    source = inspect.getsource(GRPOTrainer._generate_and_score_completions)
    before, after = source.split("= self._generate(prompts)")
    assert "_get_per_token_logps_and_entropies(" not in before
    assert "_metrics" not in before
    assert "= self._calculate_rewards(inputs, prompts, completions, completion_ids_list)" in after
    assert set(re.findall(r"self\.(_batch_\w+|environments)", after)) == {"_batch_environments"}


def test_what_is_logged_of_generation():
    """Of the final batch only: these are logged again when groups were replaced."""
    names = re.findall(r'_metrics\[mode\]\["([\w/]+)"\]', inspect.getsource(GRPOTrainer._generate))
    assert {name.split("/")[0] for name in names} == {"num_tokens", "completions", "tools"}


def test_a_checkpoint_is_marked_last():
    """The trainer's state is written when random states are, before old checkpoints are removed."""
    source = inspect.getsource(Trainer._save_checkpoint)
    places = [
        source.index(text) for text in ("self.save_model(", "_save_rng_state(", "save_to_json(", "rotate_checkpoints(")
    ]
    assert places == sorted(places)


def test_where_the_random_state_is_restored():
    """When the dataloader is where it was, and before the first update."""
    source = inspect.getsource(Trainer._run_epoch)
    assert source.count("self._load_rng_state(resume_from_checkpoint)") == 2
    assert source.rindex("self._load_rng_state(") < source.index("self.training_step(")
    setup = inspect.getsource(Trainer._inner_training_loop)
    assert setup.index("_init_training_state(") < setup.index("self._tr_loss = ") < setup.index("self._run_epoch(")


def test_the_asynchronous_loss_takes_its_advantages_before_its_forward():
    """And multiplies after it, so that they can be written over when log-probs are known."""
    from trl.experimental.async_grpo import AsyncGRPOTrainer

    source = inspect.getsource(AsyncGRPOTrainer.compute_loss)
    assert re.findall(r'inputs\["advantages"\].*', source) == ['inputs["advantages"][selected]']
    places = [
        source.index(text) for text in ('selected = inputs["token_index"] >= 0', "= model(", "coef_1 * advantages")
    ]
    assert places == sorted(places)
    assert len(re.findall(r"\bmodel\b", source)) == 2  # the parameter and its one call
    assert "outputs.log_probs.flatten()[token_index]" in source
    read = set(re.findall(r'inputs\["(\w+)"\]', source))
    assert {"attention_mask", "token_index", "segment_id", "position_ids", "shift_labels", "old_log_probs"} <= read


def test_what_is_borrowed_for_forking_reads_the_accelerator_only():
    source = inspect.getsource(GRPOTrainer.get_high_entropy_mask)
    assert set(re.findall(r"self\.(\w+)", source)) == {"accelerator"}


def test_what_the_loss_gathers():
    """Processes may have different numbers of rows: what TRL gathers has one value a row (then it is padded), or one."""
    source = inspect.getsource(GRPOTrainer._compute_loss)
    assert re.findall(r"accelerator\.gather\w*\((\w+)", source) == [
        "policy_loss", "aux_loss", "masked_seq_mean", "masked_seq_mean",
    ]  # fmt: skip


def test_trainer_signature_is_trls():
    from trl_credit import CreditGRPOTrainer, DGPOTrainer, GCPOTrainer

    for cls in (CreditGRPOTrainer, DGPOTrainer, GCPOTrainer):
        assert inspect.signature(cls.__init__) == inspect.signature(GRPOTrainer.__init__)


def test_uniform_cites_what_trl_cites():
    assert vars(Uniform.paper) == GRPOTrainer._paper
