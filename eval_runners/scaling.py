"""By which law does the error fall with more latents, more active latents and more training tokens?

The error of an SAE is its squared error on held-out text relative to predicting the mean, 1 - explained variance. All
SAEs of one command that differ only in d_sae, k or training tokens give a law, for each name and target (several of
`--target` are separated by commas):

    L(n, k) = exp(α + β_k ln k + β_n ln n + γ ln k ln n) + exp(ζ + η ln k)

for n latents, k of them active on a token. It is fitted by least squares in ln L to the means over seeds. The first
exponent has a term β_t ln t where training tokens t differ. Terms of what does not differ are left out, and so is the
second exponential where the data do not show it. 95 % intervals come from the covariance of the fit.

The summary also gives the error of extrapolating the law to the largest n, and the best SAE for each number of encoder
products, 2 D n t floating-point operations. Files beside the results are named after what differs: `law-n-k.csv`,
`law-n-k.png`, for dark pages `law-n-k-dark.png`, and `residuals-n-k.png`. `python -m eval_runners leaderboard --evals
scaling --sae topk --recipe --picture FILE` draws the law of results that are stored.

    python -m eval_runners.scaling --sae topk --grid d_sae=512,1024,2048 --grid k=8,16,32 --seeds 0,1,2

Source: Gao et al., arXiv 2406.04093, section 3.2.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import RESULT_METRICS, UNSTRUCTURED, Context, Evaluation, Evaluator, Metric, Result
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from sae_lens import SAE

    from sae_variants.language_model.target import Target

TOKENS_PER_BATCH = 1024


@dataclass(frozen=True)
class Settings:
    """Settings of the scaling law."""

    n_contexts: int = 256
    """Held-out contexts to reconstruct."""
    context_size: int = 128
    """Tokens in a context, BOS included."""


METRICS = (
    Metric("error", "loss", "squared error relative to the variance", "lower", short="1 - EV"),
    Metric("error", "l0", "latents active on a token, k", "neither"),
    Metric("error", "n", "latents", "neither"),
    Metric("error", "tokens", "training tokens", "neither"),
    Metric("error", "products", "operations of the encoder in training", "neither"),
)


class Scaling(Evaluator[Settings]):
    """One point of the law for each SAE, and the law over all SAEs of a command."""

    settings_class = Settings
    metrics = METRICS

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Measure the error of one SAE."""
        import torch

        from eval_runners.data.heldout import heldout_activations
        from eval_runners.measures.checks import require_finite_weights
        from sae_variants.ops.explained_variance import ExplainedVariance

        require_finite_weights(sae)
        variance, active = ExplainedVariance(), 0
        batches = heldout_activations(target, context.model, settings.n_contexts, settings.context_size)
        for x_CTD, special_CT in batches:
            with torch.no_grad():
                for x_ND in x_CTD[~special_CT].split(TOKENS_PER_BATCH):
                    acts_NS = sae.encode(x_ND)
                    variance.add(x_ND, sae.decode(acts_NS) - x_ND)
                    active += int((acts_NS > 0).sum())
        tokens = getattr(sae.cfg.metadata, "training_tokens", None) or 0
        values = {
            "error.loss": variance.unexplained,
            "error.l0": active / variance.count,
            "error.n": float(sae.cfg.d_sae),
            "error.tokens": float(tokens),
            "error.products": 2.0 * sae.cfg.d_in * sae.cfg.d_sae * tokens,
        }
        name = law_name(context.located.label, target) if context.located else "SAE"
        return Evaluation(values, {"name": name}, [] if active else ["no latent fires"])

    def summarize_all(self, results: Sequence[Result]) -> tuple[list[str], dict[str, bytes]]:
        """Fit a law for each name and target, describe it, and draw it."""
        import numpy as np

        from eval_runners.measures.law_report import FittedLaw, describe_law, law_table
        from eval_runners.measures.scaling_law import differing_axes
        from eval_runners.views.law_pictures import draw_law, draw_residuals

        lines: list[str] = []
        laws: dict[str, FittedLaw] = {}
        for name, group in _group(results).items():
            try:
                laws[name] = FittedLaw.fit(*_points_and_losses(group))
            except UsageError as error:
                lines.append(f"{name}: no law: {error}")
            else:
                lines += [f"{name}: {line}" for line in describe_law(laws[name])]
        if not laws:
            return lines, {}
        over_all = differing_axes(np.concatenate([fitted.points_P3 for fitted in laws.values()]))
        axes = "-".join(axis for axis, differs in zip("nkt", over_all, strict=True) if differs)
        within = np.any([differing_axes(fitted.points_P3) for fitted in laws.values()], axis=0)
        return lines, {
            f"law-{axes}.csv": law_table(laws),
            f"law-{axes}.png": draw_law(laws, np.flatnonzero(within).tolist(), "light"),
            f"law-{axes}-dark.png": draw_law(laws, np.flatnonzero(within).tolist(), "dark"),
            f"residuals-{axes}.png": draw_residuals(laws),
        }


def law_name(label: str, target: Target) -> str:
    """An SAE's label without the variables of the law, and without the fields that set L0 in place of k."""
    name, _, fields = label.rstrip("]").partition("[")
    variables = {"d_sae", "k", "training_tokens", *target.l0.get(name, {})}
    others = [field for field in fields.split() if field.partition("=")[0] not in variables]
    return f"{name}[{' '.join(others)}]" if others else name


def _group(results: Sequence[Result]) -> dict[str, list[Result]]:
    """Name of a law -> its results. The name leaves out what no two laws of the command differ in."""
    several_targets = len({result["sae_lens_release_id"] for result in results}) > 1
    full_names = {result[UNSTRUCTURED]["name"] for result in results}
    variants = [name.partition("[")[0] for name in full_names]
    groups: dict[str, list[Result]] = {}
    for result in results:
        name = result[UNSTRUCTURED]["name"]
        variant = name.partition("[")[0]
        name = variant if variants.count(variant) == 1 else name
        groups.setdefault(f"{name} on {result['sae_lens_release_id']}" if several_targets else name, []).append(result)
    return groups


def _points_and_losses(results: Sequence[Result]) -> tuple[np.ndarray, np.ndarray]:
    """Points [P, 3] of n, k and t, and losses [P], of the results that have all four.

    k is the configured k where there is one: L0 is slightly smaller, because ReLU removes activations below 0.
    """
    import numpy as np

    points, losses = [], []
    for result in results:
        error = result[RESULT_METRICS]["error"]
        point = (error["n"], result["sae_cfg_dict"].get("k") or error["l0"], error["tokens"])
        if all(value and value > 0 for value in (*point, error["loss"])):
            points.append(point)
            losses.append(error["loss"])
    return np.array(points, float).reshape(-1, 3), np.array(losses, float)


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
