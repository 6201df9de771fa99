"""Log-likelihood of a binomial observation with conversion error, and its derivatives, in lanes.

m ~ Binomial(n, p), p = eps + (1 - eps - delta) sigmoid(y). A sample without reads (m = n = 0) contributes zeros.
"""

from __future__ import annotations

from epivi.field.compiled.simd import Lanes, absolute, compiled, exponential, logarithm, select_less


@compiled
def _sigmoids(y: Lanes) -> tuple[Lanes, Lanes]:
    """sigmoid(y) and sigmoid(-y), each to full relative precision."""
    e = exponential(0.0 - absolute(y))
    large = 1.0 / (1.0 + e)
    small = e * large
    return select_less(y, 0.0, small, large), select_less(y, 0.0, large, small)


@compiled
def observation(m: Lanes, n: Lanes, eps: float, delta: float, y: Lanes) -> tuple[Lanes, Lanes, Lanes]:
    """Slope of the log-likelihood, and its observed and expected curvature (negated second derivatives)."""
    s, c = _sigmoids(y)
    s1 = s * c
    if eps == 0.0 and delta == 0.0:
        curvature = n * s1
        return m - n * s, curvature, curvature
    gain = 1.0 - eps - delta
    p, q = eps + gain * s, delta + gain * c
    p1 = gain * s1
    share = 1.0 / (p * q)
    ratio_p, ratio_q = q * share, p * share  # 1 / p and 1 / q
    slope = p1 * (m * ratio_p - (n - m) * ratio_q)
    squares = p1 * p1 * (m * ratio_p * ratio_p + (n - m) * ratio_q * ratio_q)
    return slope, squares - slope * (c - s), n * p1 * p1 * share


@compiled
def log_observation(m: Lanes, n: Lanes, eps: float, delta: float, y: Lanes) -> Lanes:
    """Log-likelihood without the binomial coefficient."""
    if eps == 0.0 and delta == 0.0:
        e = exponential(0.0 - absolute(y))
        return m * y - n * (select_less(y, 0.0, 0.0, y) + logarithm(1.0 + e))
    s, c = _sigmoids(y)
    gain = 1.0 - eps - delta
    # A zero count takes no logarithm: without error its probability may be zero.
    methylated = select_less(0.0, m, m * logarithm(eps + gain * s), 0.0)
    return methylated + select_less(m, n, (n - m) * logarithm(delta + gain * c), 0.0)


@compiled
def observation_third_fourth(m: Lanes, n: Lanes, eps: float, delta: float, y: Lanes) -> tuple[Lanes, Lanes]:
    """Third and fourth derivative of the log-likelihood."""
    s, c = _sigmoids(y)
    s1 = s * c
    if eps == 0.0 and delta == 0.0:
        w = n * s1
        return w * (s - c), w * (6.0 * s1 - 1.0)
    gain = 1.0 - eps - delta
    p, q = eps + gain * s, delta + gain * c
    p1 = gain * s1
    p2 = p1 * (c - s)
    p3 = p1 * (1.0 - 6.0 * s1)
    p4 = p2 * (1.0 - 12.0 * s1)
    share = 1.0 / (p * q)
    per_p, per_q = q * share, 0.0 - p * share  # the derivatives of q are those of p with the other sign
    third, fourth = _log_derivatives(p1 * per_p, p2 * per_p, p3 * per_p, p4 * per_p)
    third_q, fourth_q = _log_derivatives(p1 * per_q, p2 * per_q, p3 * per_q, p4 * per_q)
    return m * third + (n - m) * third_q, m * fourth + (n - m) * fourth_q


@compiled
def _log_derivatives(r1: Lanes, r2: Lanes, r3: Lanes, r4: Lanes) -> tuple[Lanes, Lanes]:
    """Third and fourth derivative of a logarithm from the function's first four over its value."""
    square = r1 * r1
    third = r3 - 3.0 * r1 * r2 + 2.0 * r1 * square
    return third, r4 - 4.0 * r1 * r3 - 3.0 * r2 * r2 + 12.0 * square * r2 - 6.0 * square * square
