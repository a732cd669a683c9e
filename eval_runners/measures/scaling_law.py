"""The joint scaling law of Gao et al. (arXiv 2406.04093, section 3.2) and its fit.

    L(n, k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n) + exp(ζ + η ln k)

Shapes: P SAEs, c coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np


STARTS = 24
"""Random starts of the fit."""
CONDITION = 1e6
"""Condition of a fit from which its coefficients are not told apart."""


@dataclass(frozen=True)
class Law:
    terms: tuple[str, ...]
    """Names of the coefficients."""
    coefficients: np.ndarray
    low: np.ndarray
    high: np.ndarray
    """Ends of their 95 % intervals, [c]."""
    predict: Callable[[np.ndarray], np.ndarray]
    """Points [P, 3] of n, k, t -> losses [P]."""


def fit_law(points_P3: np.ndarray, losses_P: np.ndarray) -> Law:
    """The law through points of n, k and t.

    Raises:
        UsageError: fewer than two n, or too few points.
    """
    import numpy as np
    from scipy.optimize import least_squares
    from scipy.stats import t as student

    # what does not differ at all, or by rounding only, has no coefficient
    if not len(points_P3):
        raise UsageError("no SAE has an error, active latents and training tokens")
    n_differs, k_differs, t_differs = differing_axes(points_P3)
    if not n_differs:
        raise UsageError("a law needs SAEs of several d_sae, e.g. --grid d_sae=512,1024,2048")
    terms = ["α", "β_n", *(["β_k", "γ"] if k_differs else []), *(["β_t"] if t_differs else [])]
    rest = ["ζ", *(["η"] if k_differs else [])]
    if (cells := len(np.unique(points_P3, axis=0))) <= len(terms) + len(rest):
        few = f"{cells} different n, k and tokens are too few for a law of {len(terms) + len(rest)} coefficients"
        raise UsageError(f"{few}: add values to --grid")
    centre = np.log(points_P3).mean(0)  # logarithms about their means: coefficients that hardly depend on one another

    def predicted(coefficients: np.ndarray, points: np.ndarray, rest: list[str]) -> np.ndarray:
        n, k, t = (np.log(points) - centre).T
        columns = {"α": n**0, "β_n": n, "β_k": k, "γ": k * n, "β_t": t, "ζ": n**0, "η": k}
        first = np.asarray(sum(c * columns[term] for c, term in zip(coefficients, terms, strict=False)))
        if not rest:
            return first
        second = sum(c * columns[term] for c, term in zip(coefficients[len(terms) :], rest, strict=True))
        return np.logaddexp(first, np.asarray(second))

    wanted = np.log(losses_P)

    def best_of(rest: list[str]) -> Any:
        generator = np.random.default_rng(0)
        best: Any = None
        for start in range(STARTS):
            x0 = generator.normal(0, 0.3 if start else 0.0, len(terms) + len(rest))
            x0[0] += wanted.mean() - 0.7
            if rest:
                x0[len(terms)] += wanted.mean() - 0.7
            found = least_squares(lambda c: predicted(c, points_P3, rest) - wanted, x0, max_nfev=2000)
            best = found if best is None or found.cost < best.cost else best
        return best

    best = best_of(rest)
    if np.linalg.cond(best.jac) >= CONDITION:  # nothing is left over that latents do not lessen
        rest = []
        best = best_of(rest)
    freedom = len(wanted) - len(best.x)
    to_plain = _uncentred(terms, rest, centre)
    plain, spread = to_plain @ best.x, np.full(len(best.x), np.inf)  # where the points do not tell coefficients apart
    if np.linalg.cond(best.jac) < CONDITION:
        covariance = np.linalg.inv(best.jac.T @ best.jac) * 2 * best.cost / freedom
        spread = np.sqrt(np.diag(to_plain @ covariance @ to_plain.T))
    margin = student.ppf(0.975, freedom) * spread
    names = tuple(terms + rest)
    return Law(names, plain, plain - margin, plain + margin, lambda points: np.exp(predicted(best.x, points, rest)))


def _uncentred(terms: list[str], rest: list[str], centre: np.ndarray) -> np.ndarray:
    """Matrix [c, c] from coefficients of logarithms about their means to those of logarithms."""
    import numpy as np

    names = terms + rest
    matrix = np.eye(len(names))
    at = {name: number for number, name in enumerate(names)}
    n, k, t = centre
    for name, shift in (("β_n", n), ("β_k", k), ("β_t", t)):
        if name in at:
            matrix[at["α"], at[name]] = -shift
    if "γ" in at:  # γ (ln k - k̄)(ln n - n̄)
        matrix[at["α"], at["γ"]] = n * k
        matrix[at["β_n"], at["γ"]], matrix[at["β_k"], at["γ"]] = -k, -n
    if "η" in at:
        matrix[at["ζ"], at["η"]] = -k
    return matrix


def differing_axes(points_P3: np.ndarray) -> list[bool]:
    """Which of n, k and t differ, and not by rounding only."""
    return (points_P3.max(0) > 1.02 * points_P3.min(0)).tolist()


def mean_losses(points_P3: np.ndarray, losses_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different points, and of each the geometric mean of its losses."""
    import numpy as np

    cells, of_P = np.unique(points_P3, axis=0, return_inverse=True)
    of_P = of_P.reshape(-1)
    return cells, np.exp(np.bincount(of_P, np.log(losses_P)) / np.bincount(of_P))


def seed_spread(points_P3: np.ndarray, losses_P: np.ndarray) -> float | None:
    """Standard deviation of ln(loss) between seeds; None where there is one of each."""
    import numpy as np

    cells, of_P = np.unique(points_P3, axis=0, return_inverse=True)
    of_P, found = of_P.reshape(-1), np.log(losses_P)
    off = found - (np.bincount(of_P, found) / np.bincount(of_P))[of_P]
    return float(np.sqrt((off**2).sum() / (len(off) - len(cells)))) if len(off) > len(cells) else None


def describe_held_back(points: np.ndarray, losses: np.ndarray) -> list[str]:
    """How far the law of smaller SAEs is off at the largest."""
    import numpy as np

    largest = points[:, 0] == points[:, 0].max()
    try:
        law = fit_law(*mean_losses(points[~largest], losses[~largest]))
    except UsageError as error:
        return [f"nothing is held back: {error}"]
    off = np.log(law.predict(points[largest]) / losses[largest])
    said = f"{np.abs(off).mean():.1%} in the mean, {np.abs(off).max():.1%} at most, bias {off.mean():+.1%}"
    return [f"the law without n = {points[:, 0].max():.0f} is off there by {said}"]


def describe_iso_products(points: np.ndarray, losses: np.ndarray) -> list[str]:
    """The n and t of the least mean loss, for every k and every number of products that several (n, t) have."""
    import numpy as np

    cells: dict[tuple[float, float], dict[tuple[float, float], list[float]]] = {}
    for (n, k, t), loss in zip(points.tolist(), losses.tolist(), strict=True):
        of_budget = cells.setdefault((round(k, 1), float(f"{n * t:.2g}")), {})
        of_budget.setdefault((n, t), []).append(loss)
    picks = []
    for (k, budget), choices in sorted(cells.items()):
        if len(choices) > 1:
            n, t = min(choices, key=lambda cell: float(np.mean(choices[cell])))
            picks.append(f"k {k:g}, n t = {budget:.1e}: n = {n:.0f}, t = {t:.2e} (of {len(choices)})")
    return [f"least error for so many products: {'; '.join(picks)}"] if picks else []


def law_table(laws: dict[str, Any]) -> bytes:
    rows = ["name,coefficient,value,low,high"]
    for name, (_, _, law) in laws.items():
        ends = zip(law.terms, law.coefficients, law.low, law.high, strict=True)
        rows += [
            f"{name},{term},{c!r},{low!r},{high!r}" for term, c, low, high in ((t, *map(float, v)) for t, *v in ends)
        ]
    return ("\n".join(rows) + "\n").encode()
