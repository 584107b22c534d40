"""Conformal quantiles: how far from its prediction a label lies with a given probability.

Of n calibration stars and a new one that is exchangeable with them, the score of the new one is equally
likely to have any rank. It therefore lies at or below the k-th smallest of the n scores, k = ceil(level (n +
1)), with a probability of at least `level` (Vovk, Gammerman & Shafer 2005; Lei et al. 2018, JASA 113, 1094).
"""

import numpy as np

from specjax.typing import FloatArray, IntArray

_ROUNDING = 1e-9  # level (n + 1) is a whole number for many n, and its product may exceed it by rounding


def conformal_quantile(scores: FloatArray, level: float) -> float:
    """Return the k-th smallest of n scores, k = ceil(level (n + 1)); infinity if k > n.

    >>> conformal_quantile(np.arange(1.0, 20.0), 0.95)
    19.0
    >>> conformal_quantile(np.arange(1.0, 19.0), 0.95)
    inf

    Args:
        scores: (n,) absolute residuals of calibration stars, divided by their scales; none is NaN.
        level: probability content, between 0 and 1.
    """
    rank = int(np.ceil(level * (len(scores) + 1) - _ROUNDING))
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else np.inf


def group_quantiles(
    scores: FloatArray, groups: IntArray, level: float, *, count: int, fewest: int = 1
) -> FloatArray:
    """Return the conformal quantile (count,) of each group (Mondrian conformal prediction).

    Coverage then holds within each group, and not only on average over all stars. If a group has fewer than
    `fewest` stars, all have the quantile of all stars: one for the small group and narrower ones for the
    others would cover too little on average.

    Args:
        scores: (n,) as for `conformal_quantile`.
        groups: (n,) numbers of their groups, from 0.
        level: probability content.
        count: groups.
        fewest: smallest number of calibration stars of a group.
    """
    own = [scores[groups == group] for group in range(count)]
    if min(map(len, own)) < fewest:
        return np.full(count, conformal_quantile(scores, level))
    return np.array([conformal_quantile(each, level) for each in own])
