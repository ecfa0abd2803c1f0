"""Values of prefixes: the reward that the policy can expect from there on, and the advantages of tokens that follow.

A token's true advantage is V(prefix with the token) - V(prefix), where V is the mean reward of the policy's continuations.
[`steps`] cuts a completion into segments, [`estimate`] estimates V from sampled continuations (as VinePPO does, arXiv
2410.01679), [`bookkeeping`] knows it on the embedded model's task, and [`advantages`] makes token advantages of it.
"""
