"""Remarks on core results: numbers that do not mean what their column says, and an L0 that is not the requested one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

TOLERANCE = 0.1
"""Relative difference of L0 from k from which a remark is printed."""
CALIBRATED = ("temporal_consistency", "random_baseline", "hierarchical")
"""Training architectures whose threshold is calibrated at the end of the training."""


def core_remarks(result: Mapping[str, Any]) -> list[str]:
    """Return the remarks on a result of SAEBench's core evaluation."""
    metrics: dict[str, float] = {}
    for category in (result.get("eval_result_metrics") or {}).values():
        metrics.update({name: value for name, value in (category or {}).items() if value is not None})
    return [*_score_remarks(metrics), *_l0_remarks(metrics, result.get("sae_cfg_dict") or {})]


def _score_remarks(metrics: Mapping[str, float]) -> list[str]:
    """Remark on scores whose denominator, the harm of zeroing the activation, is not positive."""
    remarks = []
    clean, zeroed = (metrics.get(f"ce_loss_{name}") for name in ("without_sae", "with_ablation"))
    if clean is not None and zeroed is not None and zeroed <= clean:
        remarks.append(
            f"the CE score is meaningless: the language model predicts no better (loss {clean:.3f}) "
            f"than with the activation zeroed ({zeroed:.3f})"
        )
    kl = metrics.get("kl_div_with_ablation")
    if kl is not None and kl <= 0:
        remarks.append("the KL score is meaningless: zeroing the activation does not change the predictions")
    return remarks


def _l0_remarks(metrics: Mapping[str, float], cfg: Mapping[str, Any]) -> list[str]:
    """Remark on an L0 that differs from k by more than `TOLERANCE`, with the option that changes it."""
    l0, k = metrics.get("l0"), requested_l0(cfg)
    if not l0 or not k or abs(l0 - k) <= TOLERANCE * k:
        return []
    details = _details(cfg)
    trained_as = (cfg.get("metadata") or {}).get("training_architecture")
    if "penalty_coefficient" in details:
        advice = "its penalty did not reach the target in so few steps: train for more --training-tokens"
    elif trained_as in CALIBRATED:
        advice = "this text differs from the training text, or the SAE predates calibration: train it with --force"
    elif "topk_threshold_lr" in details:
        advice = (
            f"its threshold followed at the rate {details['topk_threshold_lr']:g}: raise --topk-threshold-lr "
            "or train for more --training-tokens"
        )
    else:
        advice = "fewer pre-activations are positive: lower --k"
    return [f"L0 is {l0:.3g} on this text instead of k = {k:g}; {advice}"]


def requested_l0(cfg: Mapping[str, Any]) -> float | None:
    """Return the L0 that the training of an SAE requested; None if another field determines it.

    Args:
        cfg: Config of the saved SAE.
    """
    details = _details(cfg)
    if details.get("base") == "relu" or details.get("sparsity") == "l1":
        return None
    k = details.get("k", cfg.get("k"))
    if "lower_k" in details and cfg.get("architecture") != "hierarchical":
        return details["lower_k"] or min(2 * k, cfg["d_sae"])
    return k


def _details(cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    return (cfg.get("metadata") or {}).get("training_architecture_details") or {}
