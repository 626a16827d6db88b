"""The quantizers a second time, from the papers' formulas: NumPy float64, gradients by hand.

Nothing here imports the package. A weight oracle takes w and g = dL/dq and returns (q, dL/dw) or, with
learned scales, (q, dL/dw, {scale: gradient}). Activation oracles return (y, dL/dx).
"""

from __future__ import annotations

import itertools

import numpy as np


def round_half_even(v):
    return np.rint(v)


def round_half_up(v):
    return np.floor(v + 0.5)


def sign(x):
    return np.where(x >= 0, 1.0, -1.0)


def unit_activation(x, g, bits, rounding=round_half_even):
    n = 2**bits - 1
    return rounding(n * np.clip(x, 0, 1)) / n, g * ((x >= 0) & (x <= 1))


def sign_activation(x, g):
    return sign(x), g * (np.abs(x) <= 1)


def thresholds(bits):
    """Inputs at which a k-bit activation on [0, 1] changes its code."""
    n = 2**bits - 1
    return (np.arange(n) + 0.5) / n


def mean_sign(w, g, per_channel=False, zero_to_zero=False):
    axes = tuple(range(1, w.ndim)) if per_channel else None
    scale = np.abs(w).mean(axis=axes, keepdims=True)
    return scale * (np.sign(w) if zero_to_zero else sign(w)), g


def tanh_round(w, g, bits):
    n = 2**bits - 1
    t = np.tanh(w)
    m = np.abs(t).max() or 1.0
    q = 2 * round_half_even(n * (t / (2 * m) + 0.5)) / n - 1
    # q = t / m but for the rounding: d q_i / d t_j = [i = j] / m - t_i / m^2 dm/dt_j
    at = (np.abs(t) == m) * np.sign(t)
    dm = at / max(np.abs(at).sum(), 1)
    dt = g / m - (g * t).sum() / m**2 * dm
    return q, dt * (1 - t**2)


def filter_sign(w, g):
    alpha = np.abs(w).mean(axis=tuple(range(1, w.ndim)), keepdims=True)
    n = w[0].size
    return alpha * sign(w), g * (1 / n + alpha * (np.abs(w) <= 1))


def symmetric(w, g, scale, eta, ternary, zero_to_zero=False):
    above = np.abs(w) > eta * np.abs(w).max()
    s = np.broadcast_to(scale, w.shape)
    signs = np.sign(w) if zero_to_zero else sign(w)
    if ternary:
        q = np.where(above, s * signs, 0.0)
    elif eta == 0:
        q = s * signs
    else:
        q = np.where(above, s * signs, signs)
    ds = g * sign(w) * above
    axes = tuple(i for i, k in enumerate(scale.shape) if k == 1)
    return q, g * np.where(above, s, 1.0), {"scale": ds.sum(axis=axes, keepdims=True)}


def two_scales(w, g, positive, negative, part):
    threshold = part * np.abs(w).max()
    above, under = w > threshold, w < -threshold
    q = np.where(above, positive, np.where(under, -negative, 0.0))
    dw = g * np.where(above, positive, np.where(under, negative, 1.0))
    return q, dw, {"positive": g[above].sum(), "negative": -g[under].sum()}


def box_scale(x, kernel, stride, padding):
    magnitude = np.abs(x).mean(axis=1)
    (kh, kw), (sh, sw), (ph, pw) = kernel, stride, padding
    magnitude = np.pad(magnitude, ((0, 0), (ph, ph), (pw, pw)))
    rows = (magnitude.shape[1] - kh) // sh + 1
    columns = (magnitude.shape[2] - kw) // sw + 1
    k = np.empty((x.shape[0], 1, rows, columns))
    for i in range(rows):
        for j in range(columns):
            k[:, 0, i, j] = magnitude[:, i * sh : i * sh + kh, j * sw : j * sw + kw].mean(axis=(1, 2))
    return k


def rounded_gradient(g, bits, uniform):
    n = 2**bits - 1
    result = np.zeros_like(g)
    for i, sample in enumerate(g):
        m = np.abs(sample).max()
        if m > 0:
            r = np.clip(sample / (2 * m) + 0.5 + (uniform[i] - 0.5) / n, 0, 1)
            result[i] = 2 * m * (round_half_even(n * r) / n - 0.5)
    return result


def ternary_mean(w, g, part):
    above = np.abs(w) > part * np.abs(w).mean()
    scale = np.abs(w)[above].mean() if above.any() else 0.0
    return np.where(above, np.sign(w) * scale, 0.0), g


def clipped_round(x, g, alpha, bits):
    y = np.where(x < 0, 0.0, np.where(x < alpha, x, alpha))
    if bits < 32:
        n = 2**bits - 1
        y = round_half_even(y * (n / alpha)) * (alpha / n)
    return y, g * ((x >= 0) & (x < alpha)), g[x >= alpha].sum()


def stepped(v, g, step, low, high, count):
    scaled = v / step
    q = round_half_even(np.clip(scaled, low, high)) * step
    middle = (scaled > low) & (scaled < high)
    slope = np.where(middle, round_half_even(scaled) - scaled, np.where(scaled <= low, low, high))
    return q, g * middle, (g * slope).sum() / np.sqrt(count * high)


def approximate_sign(x, g):
    inner = np.where(x < 0, 2 + 2 * x, 2 - 2 * x)
    return sign(x), g * np.where(np.abs(x) < 1, inner, 0.0)


def shifted_sign(x, g, shift_in, slope, shift_out, threshold):
    z = x + shift_in
    before = np.where(z > 0, z, slope * z) + shift_out + threshold
    y, d = approximate_sign(before, g)
    grads = {
        "shift_in": (d * np.where(z > 0, 1.0, slope)).sum(),
        "slope": (d * np.minimum(z, 0.0)).sum(),
        "shift_out": d.sum(),
        "threshold": d.sum(),
    }
    return y, d * np.where(z > 0, 1.0, slope), grads, before


def nearest(x, levels):
    """The nearest of some levels; the lower one of two that are equally near."""
    levels = np.sort(np.asarray(levels, dtype=np.float64))
    return levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, x, side="left")]


def half_gaussian(x, g, bits):
    step = {1: 0.7978845608, 2: 0.5388119234, 3: 0.3217289091, 4: 0.1842433428}[bits]
    levels = np.float32(step * np.arange(1, 2**bits)).astype(np.float64)
    y = np.where(x > 0, nearest(x, levels), 0.0)
    return y, g * ((x > 0) & (x <= levels[-1]))


def decaying_sign(x, g, progress):
    t = 10 ** (-1 + 2 * progress)
    k = max(1 / t, 1)
    return sign(x), g * k * t / np.cosh(np.clip(t * x, -300, 300)) ** 2


def libra(w, g, progress=0.0):
    axes, n = tuple(range(1, w.ndim)), w[0].size
    mean, deviation = w.mean(axis=axes, keepdims=True), w.std(axis=axes, keepdims=True, ddof=1)
    v = (w - mean) / deviation
    scale = 2.0 ** np.rint(np.log2(np.abs(v).mean(axis=axes, keepdims=True)))
    _, dv = decaying_sign(v, g * scale, progress)
    along = (dv * v).sum(axis=axes, keepdims=True) / (n - 1)
    return scale * sign(v), (dv - dv.mean(axis=axes, keepdims=True) - v * along) / deviation


def linear_levels(x, bits):
    half = 2 ** (bits - 1)
    return sign(x) if bits == 1 else np.clip(round_half_even(x * half), -half, half - 1) / half


def power_levels(x, bits):
    with np.errstate(divide="ignore"):
        exponent = np.clip(np.rint(np.log2(np.abs(x))), 1 - 2 ** (bits - 1), 0)
    return sign(x) * 2.0**exponent


def entropy_of(importance, cuts):
    """The weighted entropy of runs of sorted importances: minus the sum of I P log P."""
    total = 0.0
    for low, high in itertools.pairwise(cuts):
        share = (high - low) / len(importance)
        total -= importance[low:high].mean() * share * np.log(share)
    return total


def weighted_clusters(w, count, sweeps):
    importance = np.sort(w.ravel() ** 2)
    n = len(importance)
    cuts = [n * j // count for j in range(count + 1)]
    for _ in range(sweeps):
        for j in range(1, count):
            tries = range(cuts[j - 1] + 1, cuts[j + 1])
            scores = [entropy_of(importance, [*cuts[:j], c, *cuts[j + 1 :]]) for c in tries]
            cuts[j] = tries[int(np.argmax(scores))]
    levels = [np.sqrt(importance[a:b].mean()) for a, b in itertools.pairwise(cuts)]
    highest = np.sqrt(importance[[c - 1 for c in cuts[1:-1]]])
    return sign(w) * np.array(levels)[np.searchsorted(highest, np.abs(w), side="left")]


def logarithmic(x, g, bits):
    top, distance = {1: (5, 16), 2: (16, 12), 3: (19, 6), 4: (21, 3), 5: (25, 2)}[bits]
    levels = 2.0 ** ((top - distance * np.arange(2**bits - 1)[::-1]) / 16)
    with np.errstate(divide="ignore"):
        place = (np.log2(np.maximum(x, 0)) * 16 - top) / distance
    code = np.ceil(place - 0.5) + 2**bits - 1  # the lower one of two that are equally near
    y = np.concatenate([[0.0], levels])[np.clip(code, 0, 2**bits - 1).astype(int)]
    return y, g * (x > 0)


def clipped_means(w, bits, part):
    """CLIP-Q: the weights of each sign that are not clipped, in equal intervals, as the means of these."""
    half = 2 ** (bits - 1)
    sides = [np.sort(np.abs(w[keep])) for keep in (w < 0, w > 0)]
    kept = [side[int(np.floor(part * len(side))) :] for side in sides]
    reach = [side[-1] - side[0] if len(side) else 0.0 for side in kept]
    counts = (half, half - 1) if reach[0] > reach[1] else (half - 1, half)
    q = np.zeros(w.shape)
    for side, count, s in zip(kept, counts, (-1, 1), strict=True):
        if not len(side):
            continue
        inner = side[0] + (side[-1] - side[0]) * np.arange(1, count) / count
        codes = np.searchsorted(np.float32(inner).astype(float), s * w, side="left" if s > 0 else "right")
        for code in range(count):
            within = (codes == code) & (s * w >= side[0])
            if within.any():
                q[within] = w[within].mean()
    return q


def best_ternary(w):
    """a t of each filter by trial of every number of weights that are not 0."""
    q = np.empty(w.shape)
    for i, filter in enumerate(w):
        best = np.inf
        for threshold in np.unique(np.abs(filter)):
            t = np.sign(filter) * (np.abs(filter) >= threshold)
            a = (filter * t).sum() / max((t * t).sum(), 1)
            error = ((filter - a * t) ** 2).sum()
            if error < best:
                best, q[i] = error, a * t
    return q


SPARSE_STEPS = {1: 1.271106, 2: 0.786785, 3: 0.388808, 4: 0.200832}


def sparse_levels(x, g, bits):
    """0 up to the upper quartile of a normal variable, then the nearest of d, 2 d, ..."""
    step = SPARSE_STEPS[bits]
    levels = np.float32(step * np.arange(1, 2**bits)).astype(np.float64)
    y = np.where(x > np.float32(0.67449), nearest(x, levels), 0.0)
    return y, g * ((x > 0) & (x <= levels[-1]))


def residual_signs(x, g, count, slope):
    """PReLU, then signs of residuals; the last value: how close a residual is to 0, in units of its error."""
    z = np.where(x > 0, x, slope * x)
    if count == 1:
        y, near, dz = sign(z), np.abs(z), g * (np.abs(z) <= 1)
    else:
        left, y, near, dz, removed = z, 0.0, np.full(x.shape, np.inf), g, 0.0
        for _ in range(count):
            mean = np.abs(left).mean()
            near = np.minimum(near, np.abs(left) / removed) if removed else near
            removed += mean
            y, left = y + mean * sign(left), left - mean * sign(left)
    return y, dz * np.where(x > 0, 1.0, slope), (dz * np.minimum(x, 0.0)).sum(), near


def powers_of_two(w, bits):
    """Equations 2 and 4 of INQ: 2^(bits - 2) powers and 0."""
    largest = np.abs(w).max()
    if largest == 0:
        return np.zeros_like(w)
    n1 = int(np.floor(np.log2(4 * largest / 3)))
    n2 = n1 + 1 - 2 ** (bits - 1) // 2
    levels = [0.0, *(2.0**n for n in range(n2, n1 + 1))]
    result = np.zeros_like(w)
    for a, b in itertools.pairwise(levels):
        result = np.where(((a + b) / 2 <= np.abs(w)) & (np.abs(w) < 3 * b / 2), b * np.sign(w), result)
    return result
