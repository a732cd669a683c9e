"""Evaluations of sparse autoencoders: SAEBench's, unchanged, and ours beside them: `python -m eval_runners.core`.

What an evaluation of another package is made with: `Metric` and `Evaluation`; `envelope_class` and `envelope`, which
give its results SAEBench's form; `heldout_activations`.
"""

from eval_runners.contract.contract import Evaluation, Metric
from eval_runners.data.heldout import heldout_activations
from eval_runners.store.envelope import make_output as envelope
from eval_runners.store.envelope import make_output_class as envelope_class

__all__ = ["Evaluation", "Metric", "envelope", "envelope_class", "heldout_activations"]
