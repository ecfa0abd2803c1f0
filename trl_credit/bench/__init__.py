"""CreditBench measures whether credit lands on the tokens that decided the outcome.

Deciding tokens are known by construction ([`tasks`]) or because the policy's own sums can be checked ([`own_errors`]).
There are trivial baselines ([`baselines`]), scores of where weights lie ([`scores`]) and of their effect on the policy
gradient ([`gradients`]). `trl-credit bench` runs them all.
"""
