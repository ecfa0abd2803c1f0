"""Reward functions that tests name by path."""


def scaled(completions, extra, factor=1.0, **kwargs):
    return [factor * x for x in extra]


def make_scaled(factor):
    return lambda completions, extra, **kwargs: scaled(completions, extra, factor)


def constant(completions, **kwargs):
    return [1.0] * len(completions)


def interrupted(completions, **kwargs):
    raise KeyboardInterrupt
