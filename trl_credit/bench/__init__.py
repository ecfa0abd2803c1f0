"""CreditBench: does the credit land on the tokens that decided the outcome?

Tasks whose deciding tokens are known by construction ([`tasks`]) or because the policy's own sums can be checked
([`own_errors`]), trivial baselines ([`baselines`]), scores of where weights lie ([`scores`]) and of what they do to the
policy gradient ([`gradients`]). `trl-credit bench` runs them all.
"""
