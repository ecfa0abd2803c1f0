"""The small task, embedded model and training run behind `trl-credit quickstart`."""
