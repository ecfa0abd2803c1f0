"""`trl-credit bench --true`: token credit against the true advantages of tokens ([`trl_credit.values`]).

[`sampling`] makes groups of completions and values their prefixes, [`scores`] compares token advantages with the true ones,
[`gradients`] compares the policy gradients that they make, [`run`] does all of it and [`report`] shows it.
"""
