"""Equality of answers: a common notation (`notation`), kinds that need no algebra (`text`), and algebra (`algebra`).

Workers import this package on its own, without `trl_credit` and with it torch, so it imports nothing above itself.
"""
