"""Recipes: reads them, resolves what they name, and launches them."""
