"""Paired comparisons and repeated measures, using only numpy and scipy."""
