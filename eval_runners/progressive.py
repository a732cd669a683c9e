"""How good is the reconstruction from fewer latents, or more, and which latents die and recover during training?

Explained variance on held-out text when only the k' latents of each token that write most (activation times norm of the
decoder row) are kept. A TopK SAE is also evaluated at k' above its k; Multi-TopK is trained for that. Other SAEs
have no more latents to give.

For an SAE that is trained here, snapshots of its training give the share of latents that fire on none of these tokens
(dead), the share that fire but did not at the snapshot before (recovered), and the reverse (lost).

Source: Gao et al., arXiv 2406.04093, sections 2.4 and 5.2.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from eval_runners.contract.contract import Context, Curve, Evaluation, Evaluator, Metric

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor

    from sae_variants.language_model.target import Target

KEPT = (1, 2, 4, 8, 16, 32, 64, 128)
"""Values of k'."""
SNAPSHOTS = (0.25, 0.5, 0.75)
"""Shares of the training after which snapshots are taken."""
PERCENTS = ("25", "50", "75", "100")
"""Training progress of the snapshots and of the trained SAE."""
SHOWN = ("dead_25", "dead_100", "recovered_50", "recovered_100")
"""Metrics of the training that the leaderboard shows."""


@dataclass(frozen=True)
class Settings:
    """Settings of the progressive reconstruction."""

    n_contexts: int = 128
    """Held-out contexts to reconstruct."""
    context_size: int = 128
    """Tokens in a context, BOS included."""
    training: bool = True
    """Evaluate snapshots of the training of an SAE that is trained here."""


def _training_metrics() -> tuple[Metric, ...]:
    titles = {
        **{f"dead_{at}": f"share of latents that do not fire after {at} % of the training" for at in PERCENTS},
        **{f"recovered_{at}": f"share that fire after {at} %, and did not a quarter before" for at in PERCENTS[1:]},
        **{f"lost_{at}": f"share that do not fire after {at} %, and did a quarter before" for at in PERCENTS[1:]},
    }
    return tuple(
        Metric("training", name, title, "neither", short=name.replace("_", " ") if name in SHOWN else "")
        for name, title in titles.items()
    )


METRICS = (
    *(
        Metric(
            "kept",
            f"ev_{k}",
            f"explained variance from the largest {k}",
            "higher",
            short=f"EV, k' = {k}",
            curve=Curve("Explained variance from fewer latents", "latents kept", float(k)),
        )
        for k in KEPT
    ),
    *_training_metrics(),
)


class Progressive(Evaluator[Settings]):
    """Explained variance over the number of latents kept, and turnover of latents during training."""

    settings_class = Settings
    metrics = METRICS

    def snapshot_shares(self, settings: Settings) -> tuple[float, ...]:
        """Quarters of the training, unless `training` is off."""
        return SNAPSHOTS if settings.training else ()

    def evaluate(self, sae: SAE[Any], target: Target, settings: Settings, context: Context) -> Evaluation:
        """Measure explained variances, and the turnover of latents where the SAE has snapshots."""
        import torch

        from eval_runners.data.heldout import heldout_activations
        from eval_runners.measures.checks import require_finite_weights
        from eval_runners.measures.truncation import truncated_explained_variances

        require_finite_weights(sae)
        batches = heldout_activations(target, context.model, settings.n_contexts, settings.context_size)
        x_ND = torch.cat([x_CTD[~special_CT] for x_CTD, special_CT in batches])
        explained = truncated_explained_variances(sae, x_ND, KEPT)
        values: dict[str, float | None] = {f"kept.ev_{k}": value for k, value in explained.items()}
        if settings.training:
            values |= _turnover(sae, x_ND, context)
        failures = [] if max(explained.values()) > 0 else ["the reconstruction explains no variance"]
        return Evaluation(values, failures=failures)


def _turnover(sae: SAE[Any], x_ND: Tensor, context: Context) -> dict[str, float]:
    """Values of the category `training`; none for an SAE without snapshots."""
    from eval_runners.harness.find_sae import locate_snapshot
    from eval_runners.measures.turnover import firing_latents, latent_turnover

    plan = context.located.plan if context.located else None
    if plan is None or plan.lacks(SNAPSHOTS):
        return {}
    snapshots = (locate_snapshot(plan.snapshot(share)).load(context.device) for share in SNAPSHOTS)
    fires = [firing_latents(one, x_ND) for one in (*snapshots, sae)]
    return {f"training.{name}": share for name, share in latent_turnover(PERCENTS, fires).items()}


if __name__ == "__main__":
    from eval_runners.commands.evaluate import run_evaluator

    run_evaluator(__file__)
