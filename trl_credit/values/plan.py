"""Which prefixes of a completion need continuations, and where the others get their values from.

    V after the last token      the completion's own reward
    V after a mistake           0, where bookkeeping knows of one
    V where the policy goes on almost surely

The last: from a prefix, the policy writes the next tokens with probability p, and V(prefix) = p V(next) + (1 - p)
V(otherwise), so the two values differ by at most 1 - p of the rewards' range. A prefix from which it goes to the
completion's end like that has the completion's own reward, and one that it reaches like that from an earlier valued one has
that one's value.
"""

import math
from collections.abc import Sequence

import numpy as np

from .estimate import Values
from .store import CERTAIN, MISTAKE, REWARD, SAMPLED, SampleValues


def value_sources(
    tokens: Sequence[int], logps: Sequence[float], certain: float = 1.0, mistake: int | None = None
) -> list[tuple[str, int]]:
    """For each of S + 1 prefixes, where its value comes from, and the number of the prefix that has it.

    Args:
        tokens: (S + 1,) numbers of the completion's tokens in each prefix, ascending from 0 to T.
        logps: (T,) log-probs of the tokens under the policy that sampled them. NaN is not certain.
        certain: Probability from which the policy's next tokens do not change the value.
        mistake: Number of the token after which the completion cannot be right any more; `None` if it is unknown or there
            is none.
    """
    reached = np.concatenate([[0.0], np.cumsum(np.asarray(logps, np.float64))])
    least = math.log(certain)
    last = len(tokens) - 1
    found: list[tuple[str, int]] = []
    valued = None
    for i, token in enumerate(tokens):
        if i == last:
            found.append((REWARD, i))
        elif mistake is not None and token > mistake:
            found.append((MISTAKE, i))
        elif reached[-1] - reached[token] >= least:
            found.append((CERTAIN, last))
        elif valued is not None and reached[token] - reached[tokens[valued]] >= least:
            found.append((CERTAIN, valued))
        else:
            found.append((SAMPLED, i))
            valued = i
    return found


def values_of(
    tokens: Sequence[int], sources: Sequence[tuple[str, int]], reward: float, numbers: Sequence[int], estimates: Values
) -> SampleValues:
    """A completion's values.

    Args:
        tokens: (S + 1,) numbers of tokens in each prefix.
        sources: Of [`value_sources`].
        reward: The completion's reward.
        numbers: (S + 1,) the number of each prefix among the estimates; anything where it is not sampled.
        estimates: Estimates of all sampled prefixes.
    """
    rows = []
    for _, owner in sources:
        source = sources[owner][0]
        if source == SAMPLED:
            n = numbers[owner]
            rows.append((estimates.mean[n], estimates.stderr[n], estimates.count[n], *estimates.halves[n]))
        else:
            known = 0.0 if source == MISTAKE else reward
            rows.append((known, 0.0, 0, known, known))
    table = np.array(rows, np.float64)
    return SampleValues(
        tokens=np.array(tokens, np.int64),
        mean=table[:, 0],
        stderr=table[:, 1],
        count=table[:, 2].astype(np.int64),
        halves=table[:, 3:],
        source=[source for source, _ in sources],
    )
