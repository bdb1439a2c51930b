"""The upper bound of a share of which a count was seen, by Clopper and Pearson, without scipy."""

from math import expm1, lgamma, log, log1p, pi

from robustsim.errors import InputError

_NEGLIGIBLE = 1e-18  # of a sum
_NARROW = 1e-12  # of the bound, where the search for it ends
# Added to the bound, as a share of it: more than all roundings, which come to less than 1e-10.
_ROUNDING = 1e-9
_SERIES = 16  # from there on, Stirling's series has all digits
_SMALL = 0.1


def upper_bound(count: int, trials: int, confidence: float = 0.95) -> float:
    """The largest share at which so few events, or fewer, would be seen with a probability of `1 - confidence`.

    One-sided: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial". It is the `confidence` quantile of the beta distribution with `count + 1` and `trials - count`; without
    any event, `1 - (1 - confidence) ** (1 / trials)`, some `3 / trials` at 0.95. Rounded up, by less than 2e-9 of it.

    Args:
        count: of events, from 0 to `trials`.
        trials: how many there were, independent of each other.
        confidence: from 0.5 on, and below 1.

    Raises:
        InputError: arguments outside these.
    """
    if not 0.5 <= confidence < 1:
        raise InputError(f"confidence must be at least 0.5 and below 1, not {confidence}")
    if not 0 <= count <= trials or trials < 1:
        raise InputError(f"{count} of {trials} is no share")
    if count == trials:
        return 1.0
    level = log1p(-confidence)
    if count == 0:
        return min(1.0, -expm1(level / trials) * (1 + _ROUNDING))
    low = count / trials
    high = low
    while high < 1 and _log_at_most(count, trials, high) > level:
        low, high = high, min(1.0, high + (high - low or 2 * high / count**0.5))
    while high - low > _NARROW * high:
        middle = (low + high) / 2
        if _log_at_most(count, trials, middle) > level:
            low = middle
        else:
            high = middle
    return min(1.0, high * (1 + _ROUNDING))


def _log_at_most(count: int, trials: int, share: float) -> float:
    """The logarithm of the probability of so many events or fewer; `share` is at least `count / trials`.

    The terms are added from the largest down, each by its ratio to the one before, until they change nothing.
    """
    if share >= 1:
        return -float("inf")
    odds = (1 - share) / share
    total = term = 1.0
    for left in range(count, 0, -1):
        term *= left / (trials - left + 1) * odds
        total += term
        if term < _NEGLIGIBLE * total:
            break
    return _log_exactly(count, trials, share) + log(total)


def _log_exactly(count: int, trials: int, share: float) -> float:
    """The logarithm of the probability of so many events, 0 < count < trials, where factorials would lose its digits.

    Loader 2000, "Fast and accurate computation of binomial probabilities".
    """
    others = trials - count
    beyond = count - trials * share  # how many more than expected
    return (
        _stirling(trials)
        - _stirling(count)
        - _stirling(others)
        - count * _deviance(-beyond / count)
        - others * _deviance(beyond / others)
        + 0.5 * log(trials / (2 * pi * count * others))
    )


def _stirling(n: int) -> float:
    """`log(n!)` without Stirling's approximation of it."""
    if n < _SERIES:
        return lgamma(n + 1) - (n + 0.5) * log(n) + n - 0.5 * log(2 * pi)
    square = 1 / (n * n)
    return (1 / 12 - (1 / 360 - (1 / 1260 - (1 / 1680 - square / 1188) * square) * square) * square) / n


def _deviance(x: float) -> float:
    """`x - log(1 + x)`, with all its digits where x is small."""
    if abs(x) > _SMALL:
        return x - log1p(x)
    total, power = 0.0, -x
    for n in range(2, 24):
        power *= -x
        total += power / n
    return total
