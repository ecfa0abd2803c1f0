"""Token credit for inspection: scored with the trainer's own code, kept as records, shown on pages."""
