"""The registered credit methods, one line each."""

# Name -> (module in this package, class)
TABLE: dict[str, tuple[str, str]] = {
    "uniform": (".uniform", "Uniform"),
    "gcpo": (".gcpo", "GCPO"),
    "dgpo": (".dgpo", "DGPO"),
    "pcpo": (".pcpo", "PCPO"),
    "delta": (".delta", "DelTA"),
    "gigpo": (".gigpo", "GiGPO"),
    "otb": (".otb", "OTB"),
    "turn": (".turn", "TurnRewards"),
}
