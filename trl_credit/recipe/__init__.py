"""Recipes: reading them, what they name, and launching them."""
