"""Scaling curve of a language model, loss over compute, and the compute that a loss is worth on it."""

from __future__ import annotations

import math
from itertools import pairwise

from sae_variants.common.errors import UsageError

Curve = list[tuple[float, float]]
"""(log compute, log loss) by rising compute and falling loss."""


def read_curve(path: str) -> Curve:
    """Read a scaling curve.

    Args:
        path: CSV file with columns `compute` and `loss`.

    Raises:
        UsageError: the file cannot be read, or holds no falling curve.
    """
    import pandas as pd

    try:
        table = pd.read_csv(path)
        points = sorted(zip(table["compute"].astype(float), table["loss"].astype(float), strict=True))
    except (OSError, KeyError, ValueError) as error:
        raise UsageError(f"cannot read --curve {path}: it must be a CSV file with columns compute and loss") from error
    if len(points) < 2 or not all(0 < value < math.inf for point in points for value in point):
        raise UsageError(f"--curve {path} needs at least two points, of positive numbers")
    curve = [(math.log(compute), math.log(loss)) for compute, loss in points]
    if any(a[0] == b[0] or a[1] <= b[1] for a, b in pairwise(curve)):
        raise UsageError(f"--curve {path} must fall: more compute, less loss")
    return curve


def compute_share(curve: Curve, clean: float, spliced: float) -> float | None:
    """Compute that gives the loss with the SAE, relative to the compute that gives the clean loss.

    Log loss is interpolated linearly over log compute.

    Args:
        curve: the scaling curve.
        clean: cross-entropy of the model without the SAE, nats.
        spliced: cross-entropy of the model with the SAE, nats.

    Returns:
        The share, 1 where both losses are equal, or None where the curve does not reach one of them.
    """
    import numpy as np

    losses, computes = [loss for _, loss in reversed(curve)], [compute for compute, _ in reversed(curve)]
    log_losses = [math.log(spliced), math.log(clean)]
    if min(log_losses) < losses[0] or max(log_losses) > losses[-1]:
        return None
    with_sae, without = np.interp(log_losses, losses, computes)
    return float(np.exp(with_sae - without))
