"""`trl-credit compare`: one recipe, several credit methods and seeds, and what can be said about their difference."""
