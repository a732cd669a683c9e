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

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Evaluation, Metric
from eval_runners.measures.scaling_law import (
    Law,
    describe_held_back,
    describe_iso_products,
    differing_axes,
    fit_law,
    law_table,
    mean_losses,
    seed_spread,
)
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np

NAME = "scaling"
CATEGORIES = ("error",)
_NAMES = ("loss", "l0", "n", "tokens", "products")


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
    from eval_runners.store.envelope import make_output_class

    return make_output_class(NAME, EvalConfig, CATEGORIES, _NAMES)


def evaluate(sae: Any, target: Any, config: EvalConfig, *, model: Any, device: str, found: Any = None) -> Evaluation:
    """One point of the law."""
    import torch

    from eval_runners.data.heldout import heldout_activations
    from eval_runners.measures.checks import require_finite_weights
    from eval_runners.store.envelope import make_output
    from sae_variants.common.values import finite_or_none

    require_finite_weights(sae)
    error, active, count, total, squares = 0.0, 0, 0, torch.zeros(sae.cfg.d_in, dtype=torch.float64), 0.0
    for x_CTD, special_CT in heldout_activations(target, model, config.n_contexts, config.context_size):
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
    output = make_output(NAME, config, finite_or_none({"error": values}), sae, target)
    return Evaluation(output, {"name": name}, failures)


def _name(label: str, target: Any) -> str:
    """An SAE's label without the fields of the law, and those that take the place of k."""
    name, _, fields = label.rstrip("]").partition("[")
    without = {"d_sae", "k", "training_tokens", *target.l0.get(name, {})}
    kept = [word for word in fields.split() if word.partition("=")[0] not in without]
    return f"{name}[{' '.join(kept)}]" if kept else name


def across(results: list[dict[str, Any]]) -> tuple[list[str], dict[str, bytes]]:
    """What results of several SAEs say together: lines, and files by their names."""
    import numpy as np

    from eval_runners.views.law_pictures import draw_law, draw_residuals

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
            cells, means = mean_losses(points, losses)
            law = fit_law(cells, means)
        except UsageError as error:
            lines.append(f"{name}: no law: {error}")
            continue
        laws[name] = points, losses, law
        ends = zip(law.terms, law.coefficients, law.low, law.high, strict=True)
        lines.append(f"{name}: " + ", ".join(f"{t} = {c:.3g} [{low:.3g}, {high:.3g}]" for t, c, low, high in ends))
        off = np.log(law.predict(points) / losses)
        spread = seed_spread(points, losses)
        lines.append(
            f"{name}: {len(points)} SAEs, {len(cells)} different ones, off by {np.sqrt((off**2).mean()):.1%}"
            + " (root mean square)"
            + (f", of which seeds are {spread:.1%}" if spread is not None else "")
        )
        lines += [
            f"{name}: {line}" for line in (*describe_held_back(points, losses), *describe_iso_products(points, losses))
        ]
    if not laws:
        return lines, {}
    every = np.concatenate([points for points, _, _ in laws.values()])
    axes = "-".join(axis for axis, differs in zip("nkt", differing_axes(every), strict=True) if differs)
    differing = [axis for axis in range(3) if any(differing_axes(points)[axis] for points, _, _ in laws.values())]
    pictures = {
        f"law-{axes}.png": draw_law(laws, differing),
        f"residuals-{axes}.png": draw_residuals(laws),
    }
    return lines, {f"law-{axes}.csv": law_table(laws), **pictures}


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(Path(__file__).stem)
