"""Token credit that can be looked at: scored by the trainer's own code, kept as records, shown on pages."""
