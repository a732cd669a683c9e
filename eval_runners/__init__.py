"""Evaluations of sparse autoencoders: SAEBench's, unchanged, and ours beside them: `python -m eval_runners.core`.

An evaluation of another package is a subclass of `Evaluator` that declares its `Metric`s; its `evaluate` is given a
`Context`, may read `heldout_activations`, and returns numbers or an `Evaluation`.
"""

from eval_runners.contract.contract import Context, Curve, Evaluation, Evaluator, Metric, Untrained
from eval_runners.data.heldout import heldout_activations

__all__ = ["Context", "Curve", "Evaluation", "Evaluator", "Metric", "Untrained", "heldout_activations"]
