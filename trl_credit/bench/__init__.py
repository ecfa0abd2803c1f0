"""CreditBench measures whether credit lands on the tokens that decided the outcome.

Deciding tokens are known by construction ([`tasks`]) or because the policy's own sums can be checked ([`own_errors`]). A
completion stands in a group with rewards, as in training ([`groups`]), so that methods of any kind can be scored
([`served`] says which). There are trivial baselines ([`baselines`]), scores of where credit lies ([`scores`]) and of its
effect on the policy gradient ([`gradients`]). `trl-credit bench` runs them all.
"""
