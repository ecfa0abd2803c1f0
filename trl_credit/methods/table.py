"""The registered credit methods, one line each."""

# The name of a list of methods
MIX = "mix"

# Name -> (module in this package, class)
TABLE: dict[str, tuple[str, str]] = {
    "uniform": (".uniform", "Uniform"),
    "gcpo": (".gcpo", "GCPO"),
    "dgpo": (".dgpo", "DGPO"),
    "rlsd": (".rlsd", "RLSD"),
    "rlcsd": (".rlcsd", "RLCSD"),
    "teacher": (".teacher", "Teacher"),
    "vppo": (".vppo", "VPPO"),
    "otb": (".otb", "OTB"),
    "certainty": (".certainty", "Certainty"),
    "delta": (".delta", "DelTA"),
    "fipo": (".fipo", "FIPO"),
    "forking": (".forking", "Forking"),
    "turn": (".turn", "TurnRewards"),
    "gigpo": (".gigpo", "GiGPO"),
    "vine": (".vine", "Vine"),
    "pcpo": (".pcpo", "PCPO"),
    # Controls
    "random": (".random", "RandomTokens"),
    "shuffled": (".shuffled", "Shuffled"),
}
