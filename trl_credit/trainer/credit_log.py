"""Writes the token credit of a few completions during training and sends it to the trackers."""

from __future__ import annotations

import importlib.util
import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from accelerate.logging import get_logger
from accelerate.utils import gather_object
from transformers import TrainerCallback

from .._util.tokens import token_pieces
from ..batching import select
from ..credit_pass import CreditResult
from ..extras.groups import total_rewards
from ..methods import CreditInputs, CreditMethod
from ..methods.compose import credit_of, title_of
from ..methods.metrics import remedy_if_uniform
from ..methods.mix import Mix
from ..methods.ops import effective_token_fraction
from ..records.record import SOURCE_PROMPT, CompletionCredit, write_parquet
from ..signals.base import signal_titles
from .rollout_stage import numbered_groups


if TYPE_CHECKING:
    from .grpo import CreditGRPOTrainer


logger = get_logger(__name__)

DEFAULT_COMPLETIONS = 4
# Batch keys for a completion's number, its prompt's and its reward, and the columns added to TRL's completions table
ROW, GROUP, REWARD = "credit_log/row", "credit_log/group", "credit_log/reward"
FRACTION_COLUMN, TOP_COLUMN = "credit/effective_fraction", "credit/top_tokens"
_TOP_TOKENS = 5


@dataclass
class _Seen:
    """One completion of a micro-batch: its row of the batch, of the method's inputs and of the results, and what only the
    rollout knows of it (nothing if that was before a resume)."""

    batch: dict[str, Any]
    inputs: CreditInputs
    weights: torch.Tensor | None
    token_advantages: torch.Tensor
    origin: dict[str, Any]

    @property
    def advantage(self) -> float:
        return self.batch["advantages"].item()

    @property
    def tokens(self) -> list[int]:
        return self.batch["completion_ids"][0][self.batch["completion_mask"][0].bool()].tolist()


class CreditLog(TrainerCallback):
    """Every `credit_log_steps` updates, shows the token credit of a few completions of that update.

    It reuses the update's own credit pass and computes no signals. The main process writes
    `OUTPUT_DIR/credit/step-N.html` (see [`~trl_credit.records.page.write_credit_report`]) and `step-N.parquet` (see
    [`~trl_credit.records.record.to_table`]). wandb and trackio get the page; TensorBoard gets a picture if matplotlib
    is installed. With `log_completions`, TRL's completions table gets the columns `credit/effective_fraction` and
    `credit/top_tokens` (the heaviest tokens and their weights), empty for completions without credit in that update.

    Only completions of the main process are shown, if possible half with a positive and half with a negative advantage.
    """

    # The entries kept of a shown completion's batch
    _kept: ClassVar[tuple[str, ...]] = (
        "prompt_ids",
        "prompt_mask",
        "completion_ids",
        "completion_mask",
        "advantages",
        ROW,
        GROUP,
        REWARD,
    )
    _noun: ClassVar[str] = "completion"
    _titled: ClassVar[str] = "Token credit"

    def __init__(self, trainer: CreditGRPOTrainer, steps: int, completions: int):
        self._trainer = trainer
        self._steps = steps
        self._completions = completions
        self._seen: list[_Seen] = []
        self._prompts: list[str | list[dict]] = []
        self._logged: tuple[list, list] = ([], [])
        self._columns: dict[int, tuple[float, str]] = {}
        self._table: dict[str, list] = {}
        self._table_step = -1

    @property
    def wants(self) -> bool:
        """True if the current update should be shown."""
        trainer = self._trainer
        return trainer.model.training and (trainer.state.global_step + 1) % self._steps == 0

    def extend_rollout(self, inputs: list[dict[str, Any]], prompts: list, batch: dict[str, Any]) -> None:
        """Numbers the completions of a generation batch and their prompts, and stores the rewards (the weighted sums) in it.

        Prompts are numbered from the run's first on, each anew whenever it is drawn.

        Args:
            inputs: The dataset rows, with what the rollout added.
            prompts: Their prompts.
            batch: The generation batch.
        """
        trainer = self._trainer
        self._prompts, self._logged = prompts, self._in_table()
        rows = len(batch["advantages"])
        start = trainer.accelerator.process_index * rows
        total = trainer.accelerator.num_processes * rows
        device = batch["advantages"].device
        logged = [list(trainer._logs["rewards"][name])[-total:] for name in trainer.reward_func_names]
        per_function = torch.tensor(
            [[math.nan if value is None else value for value in values] for values in logged], dtype=torch.float32
        )
        rewards = total_rewards(per_function.T, trainer.reward_weights)
        batch[ROW] = torch.arange(rows, device=device)
        if GROUP in self._kept:
            groups = numbered_groups(trainer, total)
            generation = trainer._step // (trainer.args.steps_per_generation * trainer.num_iterations)
            batch[GROUP] = (groups + generation * (int(groups[-1]) + 1))[start : start + rows].to(device)
        batch[REWARD] = rewards[start : start + rows].to(device)

    def _in_table(self) -> tuple[list, list]:
        """The completions of TRL's table with their advantages, which tell batches of equal completions apart."""
        return list(self._trainer._logs["completion"]), list(self._trainer._logs["advantages"])

    def see(self, batch: dict[str, Any], result: CreditResult) -> None:
        """Keeps a micro-batch's credit if the current update should be shown.

        Args:
            batch: The micro-batch that the loss reads.
            result: Result of its credit pass.
        """
        if result.view is None or not self.wants:
            return
        inputs, weights, token_advantages = result.inputs, result.weights, result.row_advantages
        batch = result.view
        if self._trainer.log_completions:
            self._keep_columns(batch, inputs, weights)
        if not self._trainer.accelerator.is_main_process:
            return
        advantages = batch["advantages"].tolist()
        for sign in (True, False):
            kept = [self._identity(seen.batch, 0) for seen in self._seen if (seen.advantage > 0) == sign]
            for row, mask in enumerate(inputs.mask):
                if len(kept) >= self._completions:
                    break
                if (advantages[row] > 0) != sign or not mask.any():
                    continue
                identity = self._identity(batch, row)
                if identity not in kept:  # skip duplicates
                    kept.append(identity)
                    self._seen.append(self._row(row, batch, inputs, weights, token_advantages))

    @staticmethod
    def _identity(batch: dict[str, Any], row: int) -> list:
        """What two completions of an update share only if they are the same: here their tokens."""
        return batch["completion_ids"][row][batch["completion_mask"][row].bool()].tolist()

    def _token_name(self, batch: dict[str, Any], row: int, place: int) -> str:
        """A token's name in the table of completions."""
        return repr(self._trainer._tokenizer.decode([int(batch["completion_ids"][row, place])]))

    def _row(self, row: int, batch, inputs: CreditInputs, weights, token_advantages) -> _Seen:
        def one(tensor):
            if tensor is None:
                return None
            tensor = tensor[row : row + 1].detach().cpu()
            return tensor.float() if tensor.is_floating_point() else tensor

        picked = select({name: batch[name] for name in self._kept if name in batch}, [row])
        return _Seen(
            batch={name: value.cpu() for name, value in picked.items()},
            inputs=inputs.map(one),
            weights=one(weights),
            token_advantages=one(token_advantages),
            # Now, as an update may take its micro-batches from several rollouts
            origin=self._origin(int(batch[ROW][row])) if ROW in batch and self._prompts else {},
        )

    def _origin(self, number: int) -> dict[str, Any]:
        """What the last rollout knows of its completion of that number."""
        return {"prompt": self._prompts[number]}

    def _keep_columns(self, batch: dict[str, Any], inputs: CreditInputs, weights: torch.Tensor | None) -> None:
        if weights is None or ROW not in batch:
            return
        fractions = effective_token_fraction(weights, inputs.mask).tolist()
        best = torch.where(inputs.mask, weights, -1.0).topk(min(_TOP_TOKENS, weights.size(1)), dim=-1)
        for i, row in enumerate(batch[ROW].tolist()):
            if not inputs.mask[i].any():
                continue
            top = [
                f"{self._token_name(batch, i, place)} {weight:.2f}"
                for place, weight in zip(best.indices[i].tolist(), best.values[i].tolist(), strict=True)
                if weight >= 0
            ]
            self._columns[row] = (fractions[i], ", ".join(top))

    # At the end of the update

    def on_step_end(self, args, state, control, **kwargs):
        if state.global_step % self._steps:
            return
        if self._trainer.log_completions:
            self._gather_columns()
        seen, self._seen = self._chosen(), []
        if not self._trainer.accelerator.is_main_process:
            return
        if not seen:
            logger.warning("Update %d had no %s with credit to show.", state.global_step, self._noun)
            return
        try:
            self._write(seen, state.global_step)
        except Exception as error:  # a failing disk, tracker or method must not end the run
            logger.warning("Cannot write or send the token credit of update %d: %s", state.global_step, error)

    def _chosen(self) -> list[_Seen]:
        """The completions to show: half with a positive advantage if there are enough of both signs."""
        up = [seen for seen in self._seen if seen.advantage > 0]
        down = [seen for seen in self._seen if seen.advantage <= 0]
        half = max(self._completions - len(down), min(len(up), -(-self._completions // 2)))
        return [*up[:half], *down[: self._completions - min(half, len(up))]]

    def _gather_columns(self) -> None:
        columns, self._columns = self._columns, {}
        trainer = self._trainer
        total = len(self._logged[0])
        if not total or self._in_table() != self._logged:
            return  # an evaluation has replaced the completions, or the batch is from before a resume
        rows = total // trainer.accelerator.num_processes
        offset = trainer.accelerator.process_index * rows
        gathered = gather_object([(offset + row, *values) for row, values in columns.items()])
        table = {FRACTION_COLUMN: [None] * total, TOP_COLUMN: [None] * total}
        for row, fraction, top in gathered:
            table[FRACTION_COLUMN][row], table[TOP_COLUMN][row] = fraction, top
        self._table, self._table_step = table, trainer.state.global_step

    def columns(self) -> dict[str, list]:
        """Columns for the completions table if they belong to the current update, else none."""
        return self._table if self._trainer.state.global_step == self._table_step else {}

    def _write(self, seen: list[_Seen], step: int) -> None:
        records = [self._record(row) for row in seen]
        method = self._trainer.credit_method
        advice = [remedy_if_uniform(method, row.inputs, row.weights) for row in seen]
        about = {
            "title": f"{self._titled} of update {step}",
            "model": self._trainer.model.config._name_or_path,
            "step": step,
            "methods": {name: each.to_dict() for name, each in self._methods().items()},
            "advice": {title_of(method): advice[0]} if all(advice) else {},
        }
        folder = Path(self._trainer.args.output_dir) / "credit"
        folder.mkdir(parents=True, exist_ok=True)
        page = folder / f"step-{step:06d}.html"
        self._write_files(page, records, about)
        self._track(page, records, step)

    def _write_files(self, page: Path, records: list[Any], about: dict[str, Any]) -> None:
        """Writes the page and the parquet file beside it."""
        from ..records.page import write_credit_report

        write_parquet(page.with_suffix(".parquet"), records, about)
        write_credit_report(page, records, about)

    def _methods(self) -> dict[str, CreditMethod]:
        """What is shown, by label: the method, and if it is a list, each of its parts."""
        method = self._trainer.credit_method
        return {title_of(method): method} | (method.labels if isinstance(method, Mix) else {})

    def _record(self, seen: _Seen) -> CompletionCredit:
        tokenizer, method = self._trainer._tokenizer, self._trainer.credit_method
        name = title_of(method)
        ids = seen.tokens
        length = len(ids)
        prompt = seen.batch["prompt_ids"][0][seen.batch["prompt_mask"][0].bool()].tolist()

        def cut(tensor: torch.Tensor):
            return tensor[0, :length].numpy()

        reward = seen.batch[REWARD].item() if REWARD in seen.batch else math.nan
        token_advantages = seen.token_advantages
        if token_advantages.dim() == 1:
            token_advantages = token_advantages.unsqueeze(1).expand_as(seen.inputs.mask)
        titles = signal_titles(list(seen.inputs.signals))
        weights = {} if seen.weights is None else {name: seen.weights}
        advantages = {name: torch.where(seen.inputs.mask, token_advantages, 0.0)}
        if isinstance(method, Mix):
            found = credit_of(method.labels, seen.inputs, seen.inputs.advantages)
            weights, advantages = weights | found[0], advantages | found[1]
        return CompletionCredit(
            prompt=tokenizer.decode(prompt, skip_special_tokens=False),
            completion=tokenizer.decode(ids, skip_special_tokens=True),
            tokens=token_pieces(tokenizer, ids),
            token_ids=seen.batch["completion_ids"][0, :length].numpy(),
            mask=cut(seen.inputs.mask),
            logps=cut(seen.inputs.policy_logps),
            entropy=cut(seen.inputs.policy_entropy),
            signals={
                titles[signal]: cut(value)
                for signal, value in seen.inputs.signals.items()
                if seen.inputs.computed.get(signal, True)
            },
            weights={label: cut(value) for label, value in weights.items()},
            token_advantages={label: cut(value) for label, value in advantages.items()},
            advantage=seen.advantage,
            reward=reward if math.isfinite(reward) else None,
            # 0 for a batch from before a resume that has none
            group=int(seen.batch[GROUP]) if GROUP in seen.batch else 0,
            info=self._source(seen),
        )

    def _source(self, seen: _Seen) -> dict[str, Any]:
        """The prompt before the chat template, if it is text and known (a resumed batch has none)."""
        if not seen.origin:
            return {}
        prompt = seen.origin["prompt"]
        texts = isinstance(prompt, str) or all(isinstance(message.get("content"), str) for message in prompt)
        return {SOURCE_PROMPT: prompt} if texts else {}

    def _track(self, page: Path, records: list[Any], step: int) -> None:
        """Sends the page to wandb and trackio, and a picture to TensorBoard, which cannot show HTML."""
        report_to = self._trainer.args.report_to
        if "wandb" in report_to:
            import wandb

            if wandb.run is not None:
                wandb.log({"credit": wandb.Html(str(page), inject=False), "train/global_step": step})
        if "trackio" in report_to:
            import trackio

            trackio.log({"credit": trackio.Html(page, inject=False), "train/global_step": step})
        for callback in self._trainer.callback_handler.callbacks:
            writer = getattr(callback, "tb_writer", None)
            if writer is not None:
                self._draw(writer, records, step)

    def _draw(self, writer: Any, records: list[Any], step: int) -> None:
        """Sends a picture to TensorBoard."""
        if importlib.util.find_spec("matplotlib"):
            from ..records.picture import plot_credit

            writer.add_figure("credit", plot_credit(None, records[0]), step)
