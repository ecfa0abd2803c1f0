"""A small task, an embedded model and a run that trains it: what `trl-credit quickstart` uses."""
