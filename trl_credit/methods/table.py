"""The registered credit methods, one line each."""

# Name -> (module in this package, class)
TABLE: dict[str, tuple[str, str]] = {
    "uniform": (".uniform", "Uniform"),
    "gcpo": (".gcpo", "GCPO"),
    "dgpo": (".dgpo", "DGPO"),
    "fipo": (".fipo", "FIPO"),
    "forking": (".forking", "Forking"),
    "pcpo": (".pcpo", "PCPO"),
    "rlcsd": (".rlcsd", "RLCSD"),
    "rlsd": (".rlsd", "RLSD"),
    "teacher": (".teacher", "Teacher"),
    # Controls
    "random": (".random", "RandomTokens"),
    "shuffled": (".shuffled", "Shuffled"),
}
