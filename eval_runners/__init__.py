"""Evaluations of sparse autoencoders: SAEBench's, unchanged, and ours beside them: `python -m eval_runners.core`.

What an evaluation of another package is made with: `Metric` and `Evaluation`; `output_class` and `output`, SAEBench's
envelope; `heldout_activations`.
"""

from eval_runners._contract import Evaluation, Metric
from eval_runners._heldout import activations as heldout_activations
from eval_runners._own import output, output_class

__all__ = ["Evaluation", "Metric", "heldout_activations", "output", "output_class"]
