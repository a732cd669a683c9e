"""scaling: by which law does the error fall with more latents, more of them active, and more tokens?

Of each SAE the squared error on held-out text, relative to predicting the mean (1 - explained variance). Over all SAEs
of one command that differ in d_sae, k or training tokens, for each name, its other fields and target (several of
`--target` are parted by commas), the law of Gao et al. (arXiv 2406.04093, 3.2)

    L(n, k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n) + exp(ζ + η ln k)

of n latents, k of them active on a token, is fitted by least squares in ln L, with β_t ln t in the first exponent where
training tokens t differ, without the terms of what does not differ, and without the second exponent where nothing shows
it; 95 % intervals from the fit's covariance.
Fitted are means over seeds. Beside it how far the law of all but the largest n is off at that n, the best SAE for each
number of encoder products, 2 D n t floating-point operations, and files beside the results, named after what differs:
`law-n-k.csv`, `law-n-k.png` and `residuals-n-k.png`.

    python -m eval_runners.scaling --sae topk --grid d_sae=512,1024,2048 --grid k=8,16,32 --seeds 0,1,2

Shapes: P SAEs, c coefficients.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Evaluation, Metric
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

NAME = "scaling"
CATEGORIES = ("error",)
_NAMES = ("loss", "l0", "n", "tokens", "products")
STARTS = 24
"""Random starts of the fit."""
CONDITION = 1e6
"""Condition of a fit from which its coefficients are not told apart."""


@dataclass(frozen=True)
class EvalConfig:
    n_contexts: int = 256
    """Held-out contexts that are reconstructed."""
    context_size: int = 128
    """Tokens in a context, BOS included."""


METRICS = (
    Metric("loss", "squared error relative to the variance", "lower", "eval_result_metrics.error.loss", short="1 - EV"),
    Metric("l0", "latents active on a token, k", "neither", "eval_result_metrics.error.l0"),
    Metric("n", "latents", "neither", "eval_result_metrics.error.n"),
    Metric("tokens", "training tokens", "neither", "eval_result_metrics.error.tokens"),
    Metric("products", "operations of encoding in training", "neither", "eval_result_metrics.error.products"),
)


def output_class() -> type:
    from eval_runners.store import envelope as _envelope

    return _envelope.envelope_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str, found: Any = None) -> Evaluation:
    """One point of the law."""
    import torch

    from eval_runners.data import heldout as _heldout
    from eval_runners.saebench import shared as _saebench
    from eval_runners.store import envelope as _envelope
    from eval_runners.store import result as _result

    _saebench.require_numbers(sae)
    error, active, count, total, squares = 0.0, 0, 0, torch.zeros(sae.cfg.d_in, dtype=torch.float64), 0.0
    for x_CTD, special_CT in _heldout.activations(target, model, config.n_contexts, config.context_size):
        with torch.no_grad():
            for x in x_CTD[~special_CT].split(1024):
                acts = sae.encode(x)
                error += (sae.decode(acts) - x).double().pow(2).sum().item()
                active, count = active + int((acts > 0).sum()), count + len(x)
                total, squares = total + x.double().sum(0).cpu(), squares + x.double().pow(2).sum().item()
    tokens = getattr(sae.cfg.metadata, "training_tokens", None) or 0
    values = {
        "loss": error / (squares - total.pow(2).sum().item() / count),
        "l0": active / count,
        "n": float(sae.cfg.d_sae),
        "tokens": float(tokens),
        "products": 2.0 * sae.cfg.d_in * sae.cfg.d_sae * tokens,
    }
    failures = [] if values["l0"] > 0 else ["no latent fires"]
    name = _name(found.label, target) if found is not None else "SAE"
    output = _envelope.envelope(NAME, config, _result.finite({"error": values}), sae, target)
    return Evaluation(output, {"name": name}, failures)


def _name(label: str, target: Any) -> str:
    """An SAE's label without the fields of the law, and those that take the place of k."""
    name, _, fields = label.rstrip("]").partition("[")
    without = {"d_sae", "k", "training_tokens", *target.l0.get(name, {})}
    kept = [word for word in fields.split() if word.partition("=")[0] not in without]
    return f"{name}[{' '.join(kept)}]" if kept else name


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


def fit(points_P3: np.ndarray, losses_P: np.ndarray) -> Law:
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
    n_differs, k_differs, t_differs = _differ(points_P3)
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


def across(results: list[dict[str, Any]]) -> tuple[list[str], dict[str, bytes]]:
    """What results of several SAEs say together: lines, and files by their names."""
    import numpy as np

    from eval_runners.views import law_pictures as _law_pictures

    several = len({result["sae_lens_release_id"] for result in results}) > 1
    names = {result["eval_result_unstructured"]["name"] for result in results}
    groups: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        name = result["eval_result_unstructured"]["name"]
        if len([other for other in names if other.partition("[")[0] == name.partition("[")[0]]) == 1:
            name = name.partition("[")[0]  # what all have in common needs no saying
        groups.setdefault(f"{name} on {result['sae_lens_release_id']}" if several else name, []).append(result)
    lines: list[str] = []
    laws: dict[str, tuple[np.ndarray, np.ndarray, Law]] = {}
    for name, mine in groups.items():
        # k as it is set, where it is: L0 differs a little from it, since ReLU leaves out what is below 0
        own = [{**r["eval_result_metrics"]["error"], "k": r["sae_cfg_dict"].get("k")} for r in mine]
        own = [{**one, "k": one["k"] or one["l0"]} for one in own]
        own = [one for one in own if all(one[key] and one[key] > 0 for key in ("loss", "k", "n", "tokens"))]
        points = np.array([[values["n"], values["k"], values["tokens"]] for values in own]).reshape(-1, 3)
        losses = np.array([values["loss"] for values in own])
        try:
            cells, means = _means(points, losses)
            law = fit(cells, means)
        except UsageError as error:
            lines.append(f"{name}: no law: {error}")
            continue
        laws[name] = points, losses, law
        ends = zip(law.terms, law.coefficients, law.low, law.high, strict=True)
        lines.append(f"{name}: " + ", ".join(f"{t} = {c:.3g} [{low:.3g}, {high:.3g}]" for t, c, low, high in ends))
        off = np.log(law.predict(points) / losses)
        spread = _spread(points, losses)
        lines.append(
            f"{name}: {len(points)} SAEs, {len(cells)} different ones, off by {np.sqrt((off**2).mean()):.1%}"
            + " (root mean square)"
            + (f", of which seeds are {spread:.1%}" if spread is not None else "")
        )
        lines += [f"{name}: {line}" for line in (*_held_back(points, losses), *_iso_products(points, losses))]
    if not laws:
        return lines, {}
    every = np.concatenate([points for points, _, _ in laws.values()])
    axes = "-".join(axis for axis, differs in zip("nkt", _differ(every), strict=True) if differs)
    differing = [axis for axis in range(3) if any(_differ(points)[axis] for points, _, _ in laws.values())]
    pictures = {
        f"law-{axes}.png": _law_pictures.law(laws, differing),
        f"residuals-{axes}.png": _law_pictures.residuals(laws),
    }
    return lines, {f"law-{axes}.csv": _table(laws), **pictures}


def _differ(points_P3: np.ndarray) -> list[bool]:
    """Which of n, k and t differ, and not by rounding only."""
    return (points_P3.max(0) > 1.02 * points_P3.min(0)).tolist()


def _means(points_P3: np.ndarray, losses_P: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Different points, and of each the geometric mean of its losses."""
    import numpy as np

    cells, of_P = np.unique(points_P3, axis=0, return_inverse=True)
    of_P = of_P.reshape(-1)
    return cells, np.exp(np.bincount(of_P, np.log(losses_P)) / np.bincount(of_P))


def _spread(points_P3: np.ndarray, losses_P: np.ndarray) -> float | None:
    """Standard deviation of ln(loss) between seeds; None where there is one of each."""
    import numpy as np

    cells, of_P = np.unique(points_P3, axis=0, return_inverse=True)
    of_P, found = of_P.reshape(-1), np.log(losses_P)
    off = found - (np.bincount(of_P, found) / np.bincount(of_P))[of_P]
    return float(np.sqrt((off**2).sum() / (len(off) - len(cells)))) if len(off) > len(cells) else None


def _held_back(points: np.ndarray, losses: np.ndarray) -> list[str]:
    """How far the law of smaller SAEs is off at the largest."""
    import numpy as np

    largest = points[:, 0] == points[:, 0].max()
    try:
        law = fit(*_means(points[~largest], losses[~largest]))
    except UsageError as error:
        return [f"nothing is held back: {error}"]
    off = np.log(law.predict(points[largest]) / losses[largest])
    said = f"{np.abs(off).mean():.1%} in the mean, {np.abs(off).max():.1%} at most, bias {off.mean():+.1%}"
    return [f"the law without n = {points[:, 0].max():.0f} is off there by {said}"]


def _iso_products(points: np.ndarray, losses: np.ndarray) -> list[str]:
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


def _table(laws: dict[str, Any]) -> bytes:
    rows = ["name,coefficient,value,low,high"]
    for name, (_, _, law) in laws.items():
        ends = zip(law.terms, law.coefficients, law.low, law.high, strict=True)
        rows += [
            f"{name},{term},{c!r},{low!r},{high!r}" for term, c, low, high in ((t, *map(float, v)) for t, *v in ends)
        ]
    return ("\n".join(rows) + "\n").encode()


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run

    run(Path(__file__).stem)
