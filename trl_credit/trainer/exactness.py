"""Rejects settings that would cancel token credit or make an optimization inexact."""

from trl import GRPOConfig

from ..methods import CreditMethod


# Losses with a gradient through the importance ratio. A sequence-level ratio's gradient sums the completion's
# log-probs, so token advantages with mean A_i have the same effect as A_i. `cispo` detaches the ratio and `vespo`
# ignores the level.
RATIO_GRADIENT_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo", "sapo", "luspo")


# TRL's levels, and GSPO-token
IMPORTANCE_SAMPLING_LEVELS = ("token", "sequence", "sequence_token")


def check_credit(method: CreditMethod, args: GRPOConfig) -> None:
    """Raises `ValueError` for settings that would cancel the method's token credit, or have no effect."""
    if (
        method.credits_tokens
        and args.importance_sampling_level == "sequence"
        and args.loss_type in RATIO_GRADIENT_LOSSES
    ):
        raise ValueError(
            f"`importance_sampling_level='sequence'` cancels the token credit of {method.name!r} with "
            f"`loss_type={args.loss_type!r}`: the gradient of a sequence-level ratio sums over the completion, so "
            "only the mean of its token advantages has an effect. Set `importance_sampling_level='sequence_token'` (the "
            "sequence's ratio, each token's gradient) or 'token', or `loss_type='cispo'`, or `credit='uniform'` (which is "
            "GSPO)."
        )
    if method.shapes_ratio and args.loss_type not in CLIPPED_LOSSES:
        raise ValueError(
            f"credit method {method.name!r} enters through a clipped ratio, which `loss_type={args.loss_type!r}` does not "
            f"have. Set `loss_type` to one of {', '.join(CLIPPED_LOSSES)}, or the method's `form` to 'advantage'."
        )
    if args.num_generations is not None:
        check_generations(method, args.num_generations)
    if method.reads_batch and args.top_entropy_quantile < 1.0:
        raise ValueError(
            f"`top_entropy_quantile` ({args.top_entropy_quantile}) and credit method {method.name!r} both choose which "
            "of the micro-batch's tokens are trained. Keep one."
        )
    if args.importance_sampling_level == "sequence_token" and args.loss_type not in RATIO_GRADIENT_LOSSES:
        raise ValueError(
            f"`importance_sampling_level='sequence_token'` has no effect with `loss_type={args.loss_type!r}`, whose ratio "
            "carries no gradient: with `cispo` it equals 'sequence', and `vespo` ignores the level. Set 'sequence' or "
            "'token'."
        )


def check_generations(method: CreditMethod, num_generations: int) -> None:
    """Raises `ValueError` if the method can do nothing with so few completions of a prompt."""
    for part in method.components().values():
        if num_generations < part.min_generations:
            raise ValueError(
                f"`num_generations` ({num_generations}): credit method {part.name!r} compares completions of a prompt, and "
                f"can do nothing with fewer than {part.min_generations}. Set `num_generations` to at least "
                f"{part.min_generations}, or use another method."
            )


def check_prompts(method: CreditMethod, args: GRPOConfig) -> None:
    """Raises `ValueError` if the method can do nothing with so few prompts in a generation batch."""
    prompts = args.generation_batch_size // args.num_generations
    for part in method.components().values():
        if prompts < part.min_prompts:
            raise ValueError(
                f"credit method {part.name!r} compares prompts of a generation batch, and has no effect with fewer than "
                f"{part.min_prompts}: `generation_batch_size` ({args.generation_batch_size}) / `num_generations` "
                f"({args.num_generations}) is {prompts}. Increase `steps_per_generation` ({args.steps_per_generation}) or "
                f"`per_device_train_batch_size` ({args.per_device_train_batch_size}), or use another method."
            )


def is_off_policy(args: GRPOConfig) -> bool:
    """True if some updates are not made by the policy that generated. (With vLLM, TRL keeps its log-probs all the same.)"""
    return bool(args.gradient_accumulation_steps % (args.steps_per_generation * args.num_iterations))


def check_old_policy(method: CreditMethod, args: GRPOConfig) -> None:
    """Raises `ValueError` if a method compares with the policy that generated, and every update is on-policy."""
    for part in method.components().values():
        if part.needs_old_policy and not is_off_policy(args):
            raise ValueError(
                f"credit method {part.name!r} has no effect here: every update is on-policy, so old and live policy are "
                f"one. Set `num_iterations` above 1 (now {args.num_iterations}), or `steps_per_generation` "
                f"({args.steps_per_generation}) above `gradient_accumulation_steps` ({args.gradient_accumulation_steps})."
            )


# Losses that clip the ratio to the old policy
CLIPPED_LOSSES = ("grpo", "bnpo", "dr_grpo", "dapo")


def check_policy(method: CreditMethod, kind: str) -> None:
    """Raises `ValueError` if the method needs another kind of policy.

    Args:
        method: The credit method.
        kind: `"tokens"` or `"steps"`; see [`Signal`].
    """
    if kind in method.policies and all(signal.policy == kind for signal in method.signals()):
        return
    if kind == "tokens":
        raise ValueError(
            f"credit method {method.name!r} weights the steps of an image model's sampler, and this trainer trains a "
            "language model. Use DiffusionGRPOTrainer (`trainer: diffusion` in a recipe), or another method."
        )
    raise ValueError(
        f"credit method {method.name!r} needs the tokens of a language model, and this trainer trains the steps of an image "
        "model's sampler. Use `credit: pcpo` or `uniform`."
    )


def _composition(args: GRPOConfig, aux_loss: bool, method: CreditMethod | None) -> str | None:
    """The reason if the loss depends on which rows share a micro-batch and on zero-advantage rows, else `None`."""
    if args.entropy_coef != 0.0 or args.use_adaptive_entropy:
        return "the entropy bonus is a mean over each micro-batch's tokens."
    if args.top_entropy_quantile < 1.0:
        return f"`top_entropy_quantile` ({args.top_entropy_quantile}) is a quantile over each micro-batch's tokens."
    if method is not None and method.reads_batch:
        return f"credit method {method.name!r} looks at all tokens of a micro-batch at once."
    if aux_loss:
        return "the MoE auxiliary loss is computed from each micro-batch's tokens (`router_aux_loss_coef`)."
    return None


def skip_refusal(args: GRPOConfig, method: CreditMethod | None = None, aux_loss: bool = False) -> str | None:
    """The reason if skipping rows with zero advantage would not be exact, else `None`.

    Args:
        args: The configuration.
        method: The credit method, if known.
        aux_loss: Whether the loss has an MoE auxiliary term.
    """
    if args.beta != 0.0:
        return f"the KL penalty (`beta={args.beta}`) has a gradient on every completion."
    if method is not None and method.credits_zero_advantage:
        return f"credit method {method.name!r} gives advantages to completions that have none."
    return _composition(args, aux_loss, method)


def regroup_refusal(
    args: GRPOConfig, method: CreditMethod | None = None, aux_loss: bool = False, dropout: bool = False
) -> str | None:
    """The reason if regrouping rows among micro-batches would not be exact, else `None`.

    Args:
        args: The configuration.
        method: The credit method, if known.
        aux_loss: Whether the loss has an MoE auxiliary term.
        dropout: Whether the policy has active dropout.
    """
    if args.loss_type == "bnpo" and args.beta != 0.0:
        return f"`loss_type='bnpo'` divides the KL penalty (`beta={args.beta}`) by each micro-batch's tokens."
    if dropout:
        return "active dropout masks depend on a row's position."
    return _composition(args, aux_loss, method)
