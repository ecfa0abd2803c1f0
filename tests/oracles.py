"""The methods' definitions in float64, one token at a time. This module never imports trl_credit."""

import math

import numpy as np


def gcpo_row(policy_logps, negative_logps, mask, top_fraction=0.4, top_mass=0.8, noise_floor=0.0):
    """Weights of one completion (lists of length T)."""
    places = [t for t, on in enumerate(mask) if on]
    weights = [0.0] * len(mask)
    if any(not (math.isfinite(policy_logps[t]) and math.isfinite(negative_logps[t])) for t in places):
        for t in places:
            weights[t] = 1.0
        return weights
    contrasts = []
    for t in places:
        u = max(-20.0, min(20.0, float(negative_logps[t]) - float(policy_logps[t])))
        # exp(u) - u - 1 by its series where the closed form cancels
        value = math.exp(u) - u - 1 if abs(u) > 1e-2 else sum(u**k / math.factorial(k) for k in range(2, 12))
        contrasts.append(0.0 if abs(u) <= noise_floor else min(value, 10.0))
    for t, weight in zip(places, rank_row(contrasts, [True] * len(places), top_fraction, top_mass), strict=True):
        weights[t] = weight
    return weights


def rank_row(contrasts, mask, top_fraction=0.4, top_mass=0.8):
    """GCPO's weights of one completion from its contrasts."""
    places = [t for t, on in enumerate(mask) if on]
    weights = [0.0] * len(mask)
    exponent = math.log(1 - top_mass) / math.log(1 - top_fraction) - 1
    n = len(places)
    powers = []
    for t in places:
        lower = sum(contrasts[s] < contrasts[t] for s in places)
        equal = sum(contrasts[s] == contrasts[t] for s in places)
        rank = lower + (equal + 1) / 2
        powers.append((rank / n) ** exponent)
    for t, power in zip(places, powers, strict=True):
        weights[t] = n * power / sum(powers)
    return weights


def dgpo_row(squared_hellinger, entropy, mask, vocab_size, temperature=0.5, entropy_exponent=1.0):
    places = [t for t, on in enumerate(mask) if on]
    weights = [0.0] * len(mask)
    if any(not (math.isfinite(squared_hellinger[t]) and math.isfinite(entropy[t])) for t in places):
        for t in places:
            weights[t] = 1.0
        return weights
    scores = [
        float(squared_hellinger[t]) * (max(float(entropy[t]), 0.0) / math.log(vocab_size)) ** entropy_exponent
        for t in places
    ]
    top = max(scores, default=0.0)
    shares = [math.exp((score - top) / temperature) for score in scores]
    for t, share in zip(places, shares, strict=True):
        weights[t] = len(places) * share / sum(shares)
    return weights


def rows(function, first, second, mask, *args, **kwargs):
    """One of the functions above over a batch, as a float64 array."""
    return np.array(
        [function(a, b, m, *args, **kwargs) for a, b, m in zip(first, second, mask, strict=True)], dtype=np.float64
    )


def distribution(logits, temperature=1.0):
    logits = np.asarray(logits, dtype=np.float64) / temperature
    logits = logits - logits.max(-1, keepdims=True)
    p = np.exp(logits)
    return p / p.sum(-1, keepdims=True)


def entropy(p):
    return -np.where(p > 0, p * np.log(np.where(p > 0, p, 1.0)), 0.0).sum(-1)


def squared_hellinger(p, q):
    return 1.0 - np.sqrt(p * q).sum(-1)


def kl(logits_p, logits_q, temperature=1.0):
    """KL(p || q) from logits; a token that p cannot emit adds nothing."""
    log_p, log_q = (log_softmax(np.asarray(x, dtype=np.float64) / temperature) for x in (logits_p, logits_q))
    p = np.exp(log_p)
    with np.errstate(invalid="ignore"):
        return np.where(np.isneginf(log_p), 0.0, p * (log_p - log_q)).sum(-1)


def log_softmax(logits):
    logits = logits - logits.max(-1, keepdims=True)
    return logits - np.log(np.exp(logits).sum(-1, keepdims=True))


def pcpo_row(native, interval, target):
    """PCPO's c of one image: w* / w with equal contributions, or zeta dt / w with contributions by length."""
    if target == "count":
        mean = sum(native) / len(native)
        return [mean / w for w in native]
    zeta = sum(native) / sum(interval)
    return [zeta * dt / w for dt, w in zip(interval, native, strict=True)]


def rlsd_row(policy_logps, hint_logps, mask, advantage, strength=0.5, clip_range=0.2):
    weights = [0.0] * len(mask)
    on = [t for t in range(len(mask)) if mask[t]]
    usable = all(math.isfinite(policy_logps[t]) and math.isfinite(hint_logps[t]) for t in on)
    for t in on:
        if advantage == 0 or not usable:
            weights[t] = 1.0
            continue
        gap = hint_logps[t] - policy_logps[t]
        ratio = math.exp(min(gap if advantage > 0 else -gap, 700.0))
        weights[t] = (1 - strength) + strength * min(max(ratio, 1 - clip_range), 1 + clip_range)
    return weights


def fipo(logps, old, advantages, mask, half_life=32.0, clip=0.2, both_sides=False, safe_ratio=4.0, ratio_limit=None):
    """FIPO's weights, by its sums."""
    weights = []
    for row_logps, row_old, advantage, row_mask in zip(logps, old, advantages, mask, strict=True):
        gap = [float(a) - float(b) if on else 0.0 for a, b, on in zip(row_logps, row_old, row_mask, strict=True)]
        usable = all(math.isfinite(value) for value in gap)
        gap = gap if usable else [0.0] * len(gap)
        counted = [0.0 if ratio_limit is not None and math.exp(value) > ratio_limit else value for value in gap]
        row = []
        for t, on in enumerate(row_mask):
            future = sum(2 ** (-(k - t) / half_life) * counted[k] for k in range(t, len(gap)))
            weight = min(max(math.exp(future), 1 - clip if both_sides else 1.0), 1 + clip)
            if advantage < 0 and math.exp(gap[t]) > safe_ratio:
                weight = min(max(weight, 0.8), 1.0)
            row.append(weight if on else 0.0)
        weights.append(row)
    return np.array(weights)


def teacher_row(teacher_logps, student_logps, mask, coefficient=1.0):
    on = [t for t in range(len(mask)) if mask[t]]
    if not all(math.isfinite(teacher_logps[t]) and math.isfinite(student_logps[t]) for t in on):
        return [0.0] * len(mask)
    return [coefficient * (teacher_logps[t] - student_logps[t]) if mask[t] else 0.0 for t in range(len(mask))]


def rlcsd_row(
    right, wrong, has_right, has_wrong, mask, advantage, scale=0.5, temperature=0.02, threshold=0.02, clip=2.0
):
    """A' - A of one completion; `wrong` and `has_wrong` are (K, T)."""
    term = [0.0] * len(mask)
    for t in range(len(mask)):
        hints = [wrong[k][t] for k in range(len(wrong)) if has_wrong[k][t]]
        if not mask[t] or not has_right[t] or not hints or advantage == 0:
            continue
        highest = max(hints)
        together = highest + math.log(sum(math.exp(hint - highest) for hint in hints) / len(hints))
        bonus = min(max(scale * math.tanh((right[t] - together) / temperature), -clip), clip)
        if abs(bonus) > threshold:
            changed = advantage + bonus
            term[t] = (max(changed, 0.0) if advantage > 0 else min(changed, 0.0)) - advantage
    return term


def otb(logps, sum_squared_probs, rewards, groups, mask, zero_tail=False):
    """OTB's token advantages of whole groups: R minus the mean of the group's rewards, weighted by the gradient gathered up
    to the token's place; `None` for a completion with a value that is not finite."""
    count, width = len(mask), len(mask[0])
    places = [[t for t in range(width) if mask[i][t]] for i in range(count)]
    gathered, broken = [], []
    for i in range(count):
        values = [(float(logps[i][t]), float(sum_squared_probs[i][t])) for t in places[i]]
        broken.append(any(not (math.isfinite(a) and math.isfinite(b)) for a, b in values))
        total, row = 0.0, []
        for logp, squared in values if not broken[i] else []:
            total += max(1 - 2 * math.exp(logp) + squared, 0.0)
            row.append(total)
        gathered.append(row)
    result = []
    for i in range(count):
        peers = [j for j in range(count) if groups[j] == groups[i] and not math.isnan(rewards[j])]
        row = [0.0] * width
        if i in peers and len({float(rewards[j]) for j in peers}) > 1:
            if broken[i]:
                row = None
            else:
                for place, t in enumerate(places[i]):
                    here = [j for j in peers if len(gathered[j]) > place]
                    if zero_tail and len(here) == 1:
                        row[t] = float(rewards[i])
                        continue
                    total = sum(gathered[j][place] for j in here)
                    if total > 0:
                        baseline = sum(gathered[j][place] * float(rewards[j]) for j in here) / total
                    else:
                        baseline = sum(float(rewards[j]) for j in peers) / len(peers)
                    row[t] = float(rewards[i]) - baseline
        result.append(row)
    return result


def certainty(logps, sum_squared_probs, rewards, groups, mask, prior=0.2, edges=(0.001, 0.01, 0.03, 0.1, 0.25, 0.5)):
    """Token advantages from a baseline that is the group's mean, from its least reward up, times the weighted regression of
    the other groups' rewards on their means, in the token's bin of doubt; `None` for a completion with a value that is not
    finite."""
    count, width = len(mask), len(mask[0])
    places = [[t for t in range(width) if mask[i][t]] for i in range(count)]
    peers = {
        g: [float(rewards[j]) for j in range(count) if groups[j] == g and not math.isnan(rewards[j])] for g in groups
    }

    def has_credit(i):
        return not math.isnan(rewards[i]) and len(set(peers[groups[i]])) > 1

    def is_broken(i):
        return not all(math.isfinite(logps[i][t]) and math.isfinite(sum_squared_probs[i][t]) for t in places[i])

    def bin_of(squared):
        doubt = 0.5 if squared < 0.5 else (1 - math.sqrt(min(2 * squared - 1, 1.0))) / 2
        return sum(doubt >= edge for edge in edges)

    widest = max([max(own) - min(own) for own in peers.values() if own], default=0.0)
    result = []
    for i in range(count):
        row = [0.0] * width
        if has_credit(i) and is_broken(i):
            row = None
        elif has_credit(i):
            low, high = min(peers[groups[i]]), max(peers[groups[i]])
            mean = sum(peers[groups[i]]) / len(peers[groups[i]])
            for t in places[i]:
                along = square = prior
                for j in range(count):
                    if groups[j] == groups[i] or not has_credit(j) or is_broken(j):
                        continue
                    least, most = min(peers[groups[j]]), max(peers[groups[j]])
                    middle = (sum(peers[groups[j]]) / len(peers[groups[j]]) - least) / (most - least)
                    for s in places[j]:
                        if bin_of(sum_squared_probs[j][s]) == bin_of(sum_squared_probs[i][t]):
                            weight = max(1 - 2 * math.exp(logps[j][s]) + sum_squared_probs[j][s], 0.0)
                            weight *= ((most - least) / widest) ** 2
                            along += weight * middle * (float(rewards[j]) - least) / (most - least)
                            square += weight * middle**2
                row[t] = float(rewards[i]) - min(low + along / square * (mean - low), high)
        result.append(row)
    return result


def vine(segments, values, rewards, mask, scale="whiten"):
    """VinePPO's token advantages: what the token's step adds to the value, over all tokens to mean 0 and deviation 1;
    `None` for a completion with an unknown value."""
    result, tokens = [], []
    for i in range(len(mask)):
        row = [0.0] * len(mask[i])
        if not math.isnan(rewards[i]):
            on = [t for t in range(len(mask[i])) if mask[i][t]]
            for t in on:
                row[t] = float(values[i][segments[i][t] + 1]) - float(values[i][segments[i][t]])
            if all(math.isfinite(row[t]) for t in on):
                tokens += [(i, t) for t in on]
            else:
                row = None
        result.append(row)
    if scale == "none":
        return result
    found = [result[i][t] for i, t in tokens]
    if len(set(found)) < 2:
        return [None if row is None else [0.0] * len(row) for row in result]
    mean = sum(found) / len(found)
    deviation = math.sqrt(sum((value - mean) ** 2 for value in found) / (len(found) - 1))
    for i, t in tokens:
        result[i][t] = (result[i][t] - (mean if scale == "whiten" else 0.0)) / deviation
    return result


def delta(logps, hidden_states, advantages, mask, low=0.8, high=1.2, refinements=1):
    """DelTA's factors with squared distances in full; rows of NaN for completions with a value that is not finite, unless
    they have no advantage: then no value of theirs matters."""
    logps, hidden, advantages = (np.asarray(x, dtype=np.float64) for x in (logps, hidden_states, advantages))
    mask = np.asarray(mask, dtype=bool)
    bad = [
        i
        for i in range(len(mask))
        if advantages[i] != 0
        and not all(np.isfinite(logps[i, t]) and np.isfinite(hidden[i, t]).all() for t in np.flatnonzero(mask[i]))
    ]
    tokens = [(i, t) for i in range(len(mask)) for t in range(mask.shape[1]) if mask[i, t] and i not in bad]
    factors = np.where(mask, 1.0, 0.0)
    own = {side: [(i, t) for i, t in tokens if side * advantages[i] > 0] for side in (1, -1)}
    if own[1] and own[-1]:
        v = {(i, t): (1 - math.exp(logps[i, t])) * hidden[i, t] for i, t in own[1] + own[-1]}

        def centre(side, share):
            weights = [abs(advantages[i]) * share[i, t] for i, t in own[side]]
            return sum(w * v[token] for w, token in zip(weights, own[side], strict=True)) / max(sum(weights), 1e-8)

        def margins_to(mu):
            return {
                token: ((v[token] - mu[-side]) ** 2).sum() - ((v[token] - mu[side]) ** 2).sum()
                for side in (1, -1)
                for token in own[side]
            }

        def deviations(margins):
            return {side: max(math.sqrt(np.var([margins[token] for token in own[side]])), 1e-4) for side in (1, -1)}

        def share_of(margins, tau):
            return {token: 1 / (1 + math.exp(-margins[token] / tau[side])) for side in (1, -1) for token in own[side]}

        mu = {side: centre(side, dict.fromkeys(own[side], 1.0)) for side in (1, -1)}
        margins = margins_to(mu)
        tau = deviations(margins)
        for _ in range(refinements):
            share = share_of(margins, tau)
            tau = deviations(margins)
            mu = {side: centre(side, share) for side in (1, -1)}
            margins = margins_to(mu)
        share = share_of(margins, tau)
        for token in tokens:
            factors[token] = low + (high - low) * share.get(token, 0.0)
        mean = sum(factors[token] for token in tokens) / len(tokens)
        for token in tokens:
            factors[token] /= mean
    for i in bad:
        factors[i, mask[i]] = math.nan
    return factors


def _deviation(value, others, divide=False):
    """value - mean(others), 0 if all are equal; divided by their unbiased standard deviation plus 1e-6."""
    if len(set(others)) < 2:
        return 0.0
    mean = sum(others) / len(others)
    scale = math.sqrt(sum((other - mean) ** 2 for other in others) / (len(others) - 1)) + 1e-6 if divide else 1.0
    return (value - mean) / scale


def _returns(turn_rewards, discount):
    rows = []
    for row in turn_rewards:
        values = [0.0 if math.isnan(r) else float(r) for r in row]
        rows.append([sum(discount ** (j - k) * values[j] for j in range(k, len(values))) for k in range(len(values))])
    return rows


def turn_level(turn_rewards, rewards, groups, turns, mask, discount=1.0):
    """Token advantages of turn-level rewards: the return from the turn on against the group's at the same turn."""
    returns, result = _returns(turn_rewards, discount), []
    for i in range(len(mask)):
        peers = [j for j in range(len(mask)) if groups[j] == groups[i] and not math.isnan(rewards[j])]
        row = []
        for t in range(len(mask[i])):
            k = turns[i][t]
            row.append(_deviation(returns[i][k], [returns[j][k] for j in peers]) if mask[i][t] and i in peers else 0.0)
        result.append(row)
    return result


def gigpo(turn_rewards, states, rewards, groups, turns, mask, discount=0.95, weight=1.0, divide=False):
    """GiGPO's token advantages: the reward against the group's, and the turn's return against that of the group's turns
    from the same state."""
    returns, count, result = _returns(turn_rewards, discount), len(mask), []
    known = [i for i in range(count) if not math.isnan(rewards[i])]
    present = {(i, turns[i][t]) for i in known for t in range(len(mask[i])) if mask[i][t]}
    for i in range(count):
        row = []
        for t in range(len(mask[i])):
            if not mask[i][t] or i not in known:
                row.append(0.0)
                continue
            k = turns[i][t]
            episode = _deviation(rewards[i], [float(rewards[j]) for j in known if groups[j] == groups[i]], divide)
            same = [returns[j][m] for j, m in present if groups[j] == groups[i] and states[j][m] == states[i][k]]
            row.append(episode + weight * _deviation(returns[i][k], same, divide))
        result.append(row)
    return result


def vppo(policy_logps, damaged_logps, mask, has_image, top_fraction=0.4, scaling_min=0.9):
    """VPPO's factors, completion by completion."""
    contrasts = []
    for clean, damaged, on, shown in zip(policy_logps, damaged_logps, mask, has_image, strict=True):
        places = [t for t in range(len(on)) if on[t]]
        usable = shown and places and all(math.isfinite(clean[t]) and math.isfinite(damaged[t]) for t in places)
        gaps = {t: min(max(damaged[t] - clean[t], -20.0), 20.0) for t in places} if usable else {}
        contrasts.append({t: min(math.expm1(gap) - gap, 10.0) for t, gap in gaps.items()})
    means = [sum(row.values()) / len(row) for row in contrasts if row]
    low, high = min(means, default=0.0), max(means, default=0.0)
    scaled = len(means) >= 2 and high - low > 1e-6
    average = sum((one - low) / (high - low) for one in means) / len(means) if scaled else 1.0
    weights = []
    for row, on in zip(contrasts, mask, strict=True):
        if not row:
            weights.append([1.0 if one else 0.0 for one in on])
            continue
        factor = 1.0
        if scaled:
            score = (sum(row.values()) / len(row) - low) / (high - low)
            factor = scaling_min + score * (1 - scaling_min) / (average + 1e-8)
        most = math.ceil(len(row) * top_fraction - 1e-9)
        best = sorted(row, key=lambda t, row=row: (-row[t], t))[:most]
        weights.append([factor if t in best else 0.0 for t in range(len(on))])
    return weights
