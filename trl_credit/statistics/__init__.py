"""Paired comparisons and repeated measures, in numpy and scipy alone."""
