"""The joint scaling law of the error over latents, active latents and training tokens, and its fit.

    L(n, k, t) = exp(α + β_k ln k + β_n ln n + γ ln k ln n + β_t ln t) + exp(ζ + η ln k)

n is the number of latents, k the number active on a token, t the number of training tokens. Terms of variables that do
not differ are left out, and so is the second exponential where the data do not show it.

Source: Gao et al., arXiv 2406.04093, section 3.2; the term of t is an addition.
Shapes: P SAEs, c coefficients; points [P, 3] are columns of n, k and t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from scipy.optimize import OptimizeResult

STARTS = 24
"""Random starts of the fit."""
MAX_CONDITION = 1e6
"""Condition of the Jacobian from which on coefficients are not identifiable."""
MIN_RATIO = 1.02
"""Ratio of the largest to the smallest value from which on a variable differs, and not only by rounding."""


@dataclass(frozen=True)
class Law:
    """A fitted scaling law."""

    terms: tuple[str, ...]
    """Names of the coefficients."""
    coefficients: np.ndarray
    """Values of the coefficients [c]."""
    low: np.ndarray
    """Lower ends of the coefficients' 95 % intervals [c]; minus infinity where they are not identifiable."""
    high: np.ndarray
    """Upper ends of the coefficients' 95 % intervals [c]."""
    predict: Callable[[np.ndarray], np.ndarray]
    """Function from points [P, 3] to losses [P]."""


@dataclass(frozen=True)
class _Form:
    """Terms of both exponentials, of logarithms about their means: those coefficients hardly depend on each other."""

    first: tuple[str, ...]
    second: tuple[str, ...]
    centre_3: np.ndarray

    @property
    def terms(self) -> tuple[str, ...]:
        return self.first + self.second

    def log_losses(self, coefficients_c: np.ndarray, points_P3: np.ndarray) -> np.ndarray:
        """Logarithms of the losses [P] at points."""
        import numpy as np

        n, k, t = (np.log(points_P3) - self.centre_3).T
        columns = {"α": n**0, "β_n": n, "β_k": k, "γ": k * n, "β_t": t, "ζ": n**0, "η": k}
        split = len(self.first)
        first = sum(c * columns[term] for c, term in zip(coefficients_c[:split], self.first, strict=True))
        if not self.second:
            return np.asarray(first)
        second = sum(c * columns[term] for c, term in zip(coefficients_c[split:], self.second, strict=True))
        return np.logaddexp(np.asarray(first), np.asarray(second))

    def best_fit(self, points_P3: np.ndarray, log_losses_P: np.ndarray) -> OptimizeResult:
        """Least squares from several starts."""
        import numpy as np
        from scipy.optimize import least_squares

        generator = np.random.default_rng(0)
        fits = []
        for start in range(STARTS):
            initial_c = generator.normal(0, 0.3 if start else 0.0, len(self.terms))
            initial_c[0] += log_losses_P.mean() - 0.7  # each exponential begins as half of the mean loss
            if self.second:
                initial_c[len(self.first)] += log_losses_P.mean() - 0.7
            fits.append(least_squares(lambda c: self.log_losses(c, points_P3) - log_losses_P, initial_c, max_nfev=2000))
        return min(fits, key=lambda fit: fit.cost)


def fit_law(points_P3: np.ndarray, losses_P: np.ndarray) -> Law:
    """Fit the law by least squares in ln L, with 95 % intervals from the covariance of the fit.

    Raises:
        UsageError: n does not differ, or there are too few different points.
    """
    import numpy as np
    from scipy.stats import t as student

    form = _form_of(points_P3)
    log_losses_P = np.log(losses_P)
    fit = form.best_fit(points_P3, log_losses_P)
    if np.linalg.cond(fit.jac) >= MAX_CONDITION:  # the data do not show an error that more latents cannot reduce
        form = _Form(form.first, (), form.centre_3)
        fit = form.best_fit(points_P3, log_losses_P)
    freedom = len(losses_P) - len(fit.x)
    to_plain_cc = _uncentring(form.terms, form.centre_3)
    plain_c, error_c = to_plain_cc @ fit.x, np.full(len(fit.x), np.inf)
    if np.linalg.cond(fit.jac) < MAX_CONDITION:
        covariance_cc = np.linalg.inv(fit.jac.T @ fit.jac) * 2 * fit.cost / freedom
        error_c = np.sqrt(np.diag(to_plain_cc @ covariance_cc @ to_plain_cc.T))
    margin_c = student.ppf(0.975, freedom) * error_c
    coefficients_c = fit.x

    def predict(points: np.ndarray) -> np.ndarray:
        return np.exp(form.log_losses(coefficients_c, points))

    return Law(form.terms, plain_c, plain_c - margin_c, plain_c + margin_c, predict)


def _form_of(points_P3: np.ndarray) -> _Form:
    """The terms of the variables that differ.

    Raises:
        UsageError: n does not differ, or there are too few different points.
    """
    import numpy as np

    if not len(points_P3):
        raise UsageError("no SAE has an error, active latents and training tokens")
    n_differs, k_differs, t_differs = differing_axes(points_P3)
    if not n_differs:
        raise UsageError("a law needs SAEs of several d_sae, e.g. --grid d_sae=512,1024,2048")
    first = ("α", "β_n", *(("β_k", "γ") if k_differs else ()), *(("β_t",) if t_differs else ()))
    form = _Form(first, ("ζ", *(("η",) if k_differs else ())), np.log(points_P3).mean(0))
    if (different := len(np.unique(points_P3, axis=0))) <= len(form.terms):
        few = f"{different} different n, k and tokens are too few for a law of {len(form.terms)} coefficients"
        raise UsageError(f"{few}: add values to --grid")
    return form


def _uncentring(terms: Sequence[str], centre_3: np.ndarray) -> np.ndarray:
    """Matrix [c, c] from coefficients of logarithms about their means to coefficients of logarithms."""
    import numpy as np

    matrix_cc = np.eye(len(terms))
    at = {term: number for number, term in enumerate(terms)}
    n, k, t = centre_3
    for term, shift in (("β_n", n), ("β_k", k), ("β_t", t)):
        if term in at:
            matrix_cc[at["α"], at[term]] = -shift
    if "γ" in at:  # γ (ln k - mean of ln k) (ln n - mean of ln n)
        matrix_cc[at["α"], at["γ"]] = n * k
        matrix_cc[at["β_n"], at["γ"]], matrix_cc[at["β_k"], at["γ"]] = -k, -n
    if "η" in at:
        matrix_cc[at["ζ"], at["η"]] = -k
    return matrix_cc


def differing_axes(points_P3: np.ndarray) -> list[bool]:
    """Which of n, k and t differ, and not only by rounding."""
    return (points_P3.max(0) > MIN_RATIO * points_P3.min(0)).tolist()


def mean_losses(points_P3: np.ndarray, losses_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different points, and the geometric mean of the losses at each."""
    import numpy as np

    different, index_P = _different_points(points_P3)
    return different, np.exp(np.bincount(index_P, np.log(losses_P)) / np.bincount(index_P))


def seed_spread(points_P3: np.ndarray, losses_P: np.ndarray) -> float | None:
    """Standard deviation of ln(loss) between seeds, or None where every point has one seed."""
    import numpy as np

    different, index_P = _different_points(points_P3)
    log_losses_P = np.log(losses_P)
    deviation_P = log_losses_P - (np.bincount(index_P, log_losses_P) / np.bincount(index_P))[index_P]
    freedom = len(losses_P) - len(different)
    return float(np.sqrt((deviation_P**2).sum() / freedom)) if freedom else None


def _different_points(points_P3: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The different points, and the index [P] of each point among them."""
    import numpy as np

    different, index_P = np.unique(points_P3, axis=0, return_inverse=True)
    return different, index_P.reshape(-1)
