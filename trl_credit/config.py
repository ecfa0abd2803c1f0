"""TRL's GRPO configuration with one more field."""

from dataclasses import dataclass, field

from trl import GRPOConfig

from .methods import CreditMethod, build_credit


# Losses whose gradient goes through the importance ratio. Taken over the sequence, the ratio's gradient sums the
# completion's log-probs, so advantages of mean 1 x A_i per token act as A_i. `cispo` detaches the ratio and `vespo`
# ignores the level.
RATIO_GRADIENT_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo")


@dataclass
class CreditGRPOConfig(GRPOConfig):
    r"""
    Configuration of the [`CreditGRPOTrainer`]: every field of [`~trl.GRPOConfig`], and `credit`.

    Parameters:
        credit (`str` or `dict[str, Any]` or [`CreditMethod`], *optional*):
            The credit method: a name (`"dgpo"`), a mapping of the name and parameters (`{"method": "dgpo",
            "temperature": 0.5}`, as JSON on the command line), or a method object. `method` may be the dotted path of
            your own class. `trl-credit methods` lists the names and `trl-credit methods NAME` the parameters. If unset,
            the trainer's preset: `uniform` for [`CreditGRPOTrainer`]. After `__init__` it is the full mapping.
    """

    _VALID_DICT_FIELDS = [*GRPOConfig._VALID_DICT_FIELDS, "credit"]

    credit: dict | str | None = field(
        default=None,
        metadata={
            "help": "The credit method: a name (`uniform`, `gcpo`, `dgpo`), a mapping of `method` and its parameters (as "
            "JSON on the command line), or the dotted path of your own class. If unset, the trainer's preset. "
            "`trl-credit methods` lists the names, `trl-credit methods NAME` the parameters."
        },
    )

    def __post_init__(self):
        if self.credit is not None:
            method = build_credit(self.credit)
            check_credit(method, self)
            self.credit = method.to_dict()
        super().__post_init__()


def check_credit(method: CreditMethod, args: GRPOConfig) -> None:
    """Raises `ValueError` for settings that would cancel the method's token credit."""
    if method.reweights and args.importance_sampling_level == "sequence" and args.loss_type in RATIO_GRADIENT_LOSSES:
        raise ValueError(
            f"`importance_sampling_level='sequence'` cancels the token credit of {method.name!r} with "
            f"`loss_type={args.loss_type!r}`: the gradient of a sequence-level ratio sums over the completion, so "
            "weights of mean 1 have no effect. Set `importance_sampling_level='token'`, or `loss_type='cispo'`, or "
            "`credit='uniform'` (which is GSPO)."
        )
