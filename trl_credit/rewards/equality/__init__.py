"""Equality of answers: one notation (`notation`), kinds that need no algebra (`text`), and algebra (`algebra`).

The workers import this package by itself, without `trl_credit` and with it torch: it imports nothing above it.
"""
