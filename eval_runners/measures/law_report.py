"""Scaling laws as sentences and as a table: coefficients, residuals, extrapolation, and the best SAE for each compute.

Shapes: P SAEs; points [P, 3] are columns of n (latents), k (active latents) and t (training tokens).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from eval_runners.measures.scaling_law import Law, fit_law, mean_losses, seed_spread
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class FittedLaw:
    """A law with the SAEs that it is fitted to."""

    points_P3: np.ndarray
    losses_P: np.ndarray
    law: Law

    @classmethod
    def fit(cls, points_P3: np.ndarray, losses_P: np.ndarray) -> FittedLaw:
        """Fit the law to the mean losses over seeds.

        Raises:
            UsageError: n does not differ, or there are too few different points.
        """
        return cls(points_P3, losses_P, fit_law(*mean_losses(points_P3, losses_P)))

    @property
    def log_residuals_P(self) -> np.ndarray:
        """ln(law / loss) of each SAE."""
        import numpy as np

        return np.log(self.law.predict(self.points_P3) / self.losses_P)


def describe_law(fitted: FittedLaw) -> list[str]:
    """Coefficients, residuals, extrapolation to the largest n, and the best n and t for each compute."""
    import numpy as np

    law, points, losses = fitted.law, fitted.points_P3, fitted.losses_P
    ends = zip(law.terms, law.coefficients, law.low, law.high, strict=True)
    different, spread = len(np.unique(points, axis=0)), seed_spread(points, losses)
    error = np.sqrt((fitted.log_residuals_P**2).mean())
    return [
        ", ".join(f"{term} = {value:.3g} [{low:.3g}, {high:.3g}]" for term, value, low, high in ends),
        f"{len(points)} SAEs, {different} different ones, off by {error:.1%} (root mean square)"
        + (f", of which seeds are {spread:.1%}" if spread is not None else ""),
        describe_extrapolation(points, losses),
        *describe_iso_products(points, losses),
    ]


def describe_extrapolation(points_P3: np.ndarray, losses_P: np.ndarray) -> str:
    """Error at the largest n of the law that is fitted to all smaller n."""
    import numpy as np

    largest = points_P3[:, 0] == points_P3[:, 0].max()
    try:
        law = fit_law(*mean_losses(points_P3[~largest], losses_P[~largest]))
    except UsageError as error:
        return f"no extrapolation: {error}"
    off = np.log(law.predict(points_P3[largest]) / losses_P[largest])
    errors = f"{np.abs(off).mean():.1%} in the mean, {np.abs(off).max():.1%} at most, bias {off.mean():+.1%}"
    return f"the law without n = {points_P3[:, 0].max():.0f} is off there by {errors}"


def describe_iso_products(points_P3: np.ndarray, losses_P: np.ndarray) -> list[str]:
    """The n and t of the smallest mean loss, for every k and every product n t that several (n, t) have."""
    import numpy as np

    by_budget: dict[tuple[float, float], dict[tuple[float, float], list[float]]] = {}
    for (n, k, t), loss in zip(points_P3.tolist(), losses_P.tolist(), strict=True):
        choices = by_budget.setdefault((round(k, 1), float(f"{n * t:.2g}")), {})
        choices.setdefault((n, t), []).append(loss)
    picks = []
    for (k, budget), choices in sorted(by_budget.items()):
        if len(choices) > 1:
            n, t = min(choices, key=lambda choice: float(np.mean(choices[choice])))
            picks.append(f"k {k:g}, n t = {budget:.1e}: n = {n:.0f}, t = {t:.2e} (of {len(choices)})")
    return [f"smallest error for equal n t: {'; '.join(picks)}"] if picks else []


def law_table(laws: Mapping[str, FittedLaw]) -> bytes:
    """CSV file of the coefficients with their intervals, a row each."""
    rows = ["name,coefficient,value,low,high"]
    for name, fitted in laws.items():
        law = fitted.law
        numbers = zip(law.coefficients.tolist(), law.low.tolist(), law.high.tolist(), strict=True)
        rows += [
            f"{name},{term},{value!r},{low!r},{high!r}"
            for term, (value, low, high) in zip(law.terms, numbers, strict=True)
        ]
    return ("\n".join(rows) + "\n").encode()
