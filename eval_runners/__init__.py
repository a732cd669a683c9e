"""Evaluations of sparse autoencoders: SAEBench's, unchanged, and ours beside them: `python -m eval_runners.core`.

What an evaluation of another package is made with: `Metric` and `Evaluation`; `envelope_class` and `output`, which
give its results SAEBench's form; `heldout_activations`.
"""

from eval_runners._contract import Evaluation, Metric
from eval_runners._heldout import activations as heldout_activations
from eval_runners._own import output
from eval_runners._own import output_class as envelope_class

__all__ = ["Evaluation", "Metric", "envelope_class", "heldout_activations", "output"]
