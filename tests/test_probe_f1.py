"""Scores of probes by hand: F1, and when all probes are at chance."""

from __future__ import annotations

import pytest
import torch
from sae_bench.evals.sparse_probing import probe_training

from eval_runners.measures.checks import why_at_chance
from eval_runners.saebench.probe_f1 import F1Recorder
from eval_runners.saebench.shared import hide_output


def test_f1_by_hand():
    recorder = F1Recorder()
    # two hits, one false alarm, one miss: 2 * 2 / (2 * 2 + 1 + 1)
    recorder.record([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 0.6)
    assert recorder.scores == [pytest.approx(2 / 3)]
    recorder.record([1, 0], [0, 0], 0.5)
    assert recorder.scores[1] == 0
    with pytest.raises(RuntimeError, match="F1 would not be that of the probe"):
        recorder.record([1, 1, 1, 0, 0], [1, 1, 0, 1, 0], 0.8)


def test_one_probe_that_knows_something_is_not_at_chance():
    assert why_at_chance([0.5, 0.51, None]) == ["at chance: every SAE probe is within 0.02 of 0.5"]
    assert why_at_chance([0.5] * 40 + [1.0]) == []
    assert why_at_chance([0.5] * 40 + [0.4]) == []


def test_saebench_still_crashes_on_a_fresh_install():
    # should this fail, `train_sklearn_probe` need not lose beartype's check
    acts = {"a": torch.randn(20, 4), "b": torch.randn(20, 4)}
    with hide_output(), pytest.raises(Exception, match="violates type hint"):
        probe_training.train_probe_on_activations(acts, acts, select_top_k=1)
