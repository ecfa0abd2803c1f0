"""The registered credit methods: one line for each, its name and where it is."""

# Name -> module of this package and class
TABLE: dict[str, tuple[str, str]] = {
    "uniform": (".uniform", "Uniform"),
    "gcpo": (".gcpo", "GCPO"),
    "dgpo": (".dgpo", "DGPO"),
}
