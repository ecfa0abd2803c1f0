"""Helpers that know nothing of models, TRL or credit."""
