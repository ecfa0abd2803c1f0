import warnings
from importlib.metadata import version

from packaging.version import Version


__version__ = "0.2.0"

# TRL's minor releases, first and last, that the tests pass on. Private methods of GRPOTrainer move between minors.
TESTED_TRL = ("1.16", "1.16")


def warn_if_untested(installed: str | None = None) -> None:
    """Warns once per process if TRL's minor release is outside the tested range."""
    installed = version("trl") if installed is None else installed
    low, high = TESTED_TRL
    minor = Version(".".join(installed.split(".")[:2]))
    if not Version(low) <= minor <= Version(high):
        warnings.warn(
            f"trl-credit {__version__} is tested with TRL {low} to {high}; TRL {installed} is installed. It leans on "
            f"methods of GRPOTrainer that move between minor releases: `pip install 'trl>={low},<={high}.*'`.",
            stacklevel=3,
        )
