"""`trl-credit compare`: one recipe with several credit methods and seeds, and what the differences support."""
