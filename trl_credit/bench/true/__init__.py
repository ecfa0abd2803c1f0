"""`trl-credit bench --true`: token credit against the true advantages of tokens ([`trl_credit.values`]).

[`samples`] has the completions and their values, sampled by [`sampling`]. [`results`] has what credit is worth on them:
[`scores`] compares token advantages with the true ones, [`gradients`] the policy gradients that they make. [`run`] does all
of it, [`report`] shows it, and [`advice`] recommends.
"""
