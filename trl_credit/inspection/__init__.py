"""Token credit that can be looked at: scored by the trainer's own code, kept as records, shown on pages."""

from .records import CompletionCredit
from .scoring import Completion, CreditScorer


__all__ = ["Completion", "CompletionCredit", "CreditScorer"]
