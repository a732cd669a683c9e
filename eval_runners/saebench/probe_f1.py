"""F1 of the probes whose accuracy SAEBench reports, taken where SAEBench fits them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any
from unittest import mock

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

ProbeScores = dict[str, dict[str, float]]
"""Metric name, such as `llm_top_1_test_f1` -> class -> value."""


class F1Recorder:
    """Records F1 of every probe, from the same fitted probe whose accuracy SAEBench reports.

    SAEBench has no F1. It scores a probe where it fits it, so F1 is taken there, from the same inputs. The accuracy is
    computed again as well and must equal SAEBench's. The recorder draws no random numbers.
    """

    def __init__(self) -> None:
        """Start without scores."""
        self.f1: dict[int | None, dict[str, float]] = {}
        """Number of latents or channels, None for all of them -> class -> F1."""
        self.scores: list[float] = []
        """F1 of the classes of the dataset in progress, in SAEBench's order."""

    def record(self, labels: ArrayLike, predictions: ArrayLike, accuracy: float) -> None:
        """Add the F1 of a probe.

        Args:
            labels: 0 or 1 for every document.
            predictions: the probe's, 0 or 1 for every document.
            accuracy: SAEBench's accuracy of the probe.

        Raises:
            RuntimeError: the predictions have another accuracy.
        """
        from sklearn.metrics import accuracy_score, f1_score

        if abs(accuracy_score(labels, predictions) - accuracy) > 1e-6:
            raise RuntimeError("F1 would not be that of the probe whose accuracy SAEBench reports")
        f1: Any = f1_score(labels, predictions, zero_division=0)  # pyright: ignore[reportArgumentType]
        self.scores.append(float(f1))

    @contextlib.contextmanager
    def recording(self) -> Iterator[F1Recorder]:
        """Record the probes that SAEBench fits meanwhile."""
        import torch
        from sae_bench.evals.sparse_probing import probe_training

        # beartype refuses this function's arguments on a fresh install (it is decorated with beartype alone and
        # called from a jaxtyped function), so its body is called without the check
        fit_sklearn: Any = probe_training.train_sklearn_probe
        fit_sklearn = getattr(fit_sklearn, "__wrapped__", fit_sklearn)
        fit_torch, fit_all = probe_training.train_probe_gpu, probe_training.train_probe_on_activations

        def sklearn_probe(x: Any, y: Any, test_x: Any, test_y: Any, **kwargs: Any) -> Any:
            probe, accuracy = fit_sklearn(x, y, test_x, test_y, **kwargs)
            self.record(test_y.cpu().numpy(), probe.predict(test_x.float().cpu().numpy()), accuracy)
            return probe, accuracy

        def torch_probe(x: Any, y: Any, test_x: Any, test_y: Any, *, batch_size: int, **kwargs: Any) -> Any:
            probe, accuracy = fit_torch(x, y, test_x, test_y, batch_size=batch_size, **kwargs)
            with torch.no_grad():
                logits = torch.cat([probe(part) for part in test_x.split(batch_size)])
            self.record(test_y.cpu().numpy(), (logits > 0).int().cpu().numpy(), accuracy)
            return probe, accuracy

        def every_class(train: Any, test: Any, select_top_k: int | None = None, **kwargs: Any) -> Any:
            self.scores = []
            probes, accuracies = fit_all(train, test, select_top_k=select_top_k, **kwargs)
            self.f1[select_top_k] = dict(zip(accuracies, self.scores, strict=True))
            return probes, accuracies

        with (
            mock.patch.object(probe_training, "train_sklearn_probe", sklearn_probe),
            mock.patch.object(probe_training, "train_probe_gpu", torch_probe),
            mock.patch.object(probe_training, "train_probe_on_activations", every_class),
        ):
            yield self

    def pop_scores(self, representation: str) -> ProbeScores:
        """Return the F1 recorded since the last call, under names like SAEBench's, and forget them.

        Args:
            representation: "llm" or "sae".
        """
        f1, self.f1 = self.f1, {}
        return {f"{representation}_{'' if k is None else f'top_{k}_'}test_f1": scores for k, scores in f1.items()}
