"""Log of a training: one JSON line per report, and the same numbers to a tracking library that was requested.

    <hash>.log.jsonl      beside the checkpoint, during training; lines after the checkpoint are dropped on resuming
    <hash>/log.jsonl      beside the weights, at the end

A log that was begun goes on when its training is resumed, whether or not the log is requested again.

Shapes: C contexts, T tokens in a context, D = d_in.
"""

from __future__ import annotations

import itertools
import json
import math
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.values import finite_or_none
from sae_variants.language_model.contexts import read_contexts
from sae_variants.language_model.hooks import lock_of
from sae_variants.training.plan import Plan
from sae_variants.training.tracking import check_library, connect

if TYPE_CHECKING:
    from sae_lens import SAE
    from torch import Tensor
    from transformer_lens import HookedTransformer

    from sae_variants.synthetic.model import SyntheticData

LOG = "log.jsonl"
"""Name of the log beside the weights."""
HELDOUT_CONTEXTS = 16
"""Contexts of held-out text, always the same, on which the SAE is measured during training."""
STEPS_BETWEEN_REPORTS = 10
"""Training steps between two lines of a log."""
MEASUREMENTS = 10
"""Measurements on held-out text in a training, unless their distance is given."""


@dataclass(frozen=True)
class LogSettings:
    """Settings of the log of a training: its contents and destinations."""

    library: str = ""
    """Tracking library that also receives the numbers; empty for none."""
    heldout_every: int = 0
    """Tokens between measurements on held-out text; 0 is a tenth of the training."""

    def __post_init__(self) -> None:
        if self.library:
            check_library(self.library)


def log_path(plan: Plan) -> Path:
    """Return where the log of a plan is during its training."""
    return plan.folder.with_name(f"{plan.folder.name}.{LOG}")


def is_begun(plan: Plan) -> bool:
    """Return whether an earlier command logs, or has logged, the training of a plan."""
    return log_path(plan).exists() or (plan.folder / LOG).exists()


class TrainingLog:
    """Log of one SAE in training."""

    def __init__(self, plan: Plan, settings: LogSettings, measure: Callable[[SAE[Any]], dict[str, float | None]]):
        self.plan, self.measure = plan, measure
        self.path = log_path(plan)
        steps = max(1, settings.heldout_every // plan.settings.batch_tokens)
        self.heldout_steps = steps if settings.heldout_every else max(1, plan.settings.steps // MEASUREMENTS)
        self._library, self._send = settings.library, None
        self._last = (0, time.time())

    def resume(self, step: int) -> None:
        """Connect to the tracking library, and drop the lines after a step, which are written again.

        Raises:
            UsageError: The library cannot be used.
        """
        if self._library:
            try:
                self._send = connect(self._library, self.plan)
            except Exception as error:
                reason = f"--log {self._library} cannot be used: {describe_error(error)}"
                raise UsageError(f"{reason}; give --log alone for a file") from error
        lines = self.path.read_text().splitlines() if self.path.exists() else []
        kept = [line for line in lines if line.endswith("}") and json.loads(line)["step"] <= step]
        if lines:
            self.path.write_text("".join(f"{line}\n" for line in kept))
        logged = json.loads(kept[-1])["step"] if kept else 0
        if step and logged < step - (step - 1) % STEPS_BETWEEN_REPORTS:
            gap = f"the log of {self.plan.label} lacks steps {logged + 1} to {step}, which were trained without --log"
            print(f"{gap}; --force trains it anew with a whole log", file=sys.stderr)
        self._last = (step, time.time())

    def is_heldout_due(self, previous: int, step: int) -> bool:
        """Whether the SAE is measured on held-out text at a report, given the step of the report before it."""
        return step // self.heldout_steps > previous // self.heldout_steps or step == self.plan.settings.steps

    def write(self, step: int, numbers: Mapping[str, Any], build_sae: Callable[[Path], SAE[Any]]) -> None:
        """Write the line of a report.

        Args:
            step: Completed training steps.
            numbers: What the training step measured.
            build_sae: Function that saves the present SAE in a folder and loads it in inference form.
        """
        (previous, since), now = self._last, time.time()
        tokens = self.plan.settings.batch_tokens
        line = {"step": step, "tokens": step * tokens, **numbers}
        line["tokens_per_second"] = round((step - previous) * tokens / max(now - since, 1e-9), 1)
        if self.is_heldout_due(previous, step):
            with tempfile.TemporaryDirectory() as folder:
                line |= {f"heldout_{name}": value for name, value in self.measure(build_sae(Path(folder))).items()}
        with self.path.open("a") as file:
            file.write(json.dumps(finite_or_none(line)) + "\n")
        self._to_library({name: value for name, value in line.items() if isinstance(value, int | float)}, step)
        self._last = (step, time.time())

    def copy_to(self, folder: Path) -> None:
        """Copy the log into a folder, which becomes that of the trained SAE."""
        shutil.copyfile(self.path, folder / LOG)

    def finish(self) -> None:
        """Remove the file beside the checkpoint, as its copy is in the folder of the trained SAE, and disconnect."""
        self.path.unlink()
        self.disconnect()

    def disconnect(self) -> None:
        """End the run of the tracking library."""
        self._to_library(None, self.plan.settings.steps)

    def _to_library(self, numbers: dict[str, float] | None, step: int) -> None:
        """Send numbers to the library; after an error the training goes on, and is logged in the file alone."""
        if self._send is None:
            return
        try:
            self._send(numbers, step)
        except Exception as error:
            self._send = None
            where = f"the log of {self.plan.label} is complete in its file"
            print(f"--log {self._library} failed at step {step}, {where}: {describe_error(error)}", file=sys.stderr)


def heldout_measure(plan: Plan, model: HookedTransformer) -> Callable[[SAE[Any]], dict[str, float | None]]:
    """Return the function that measures an SAE in inference form on a fixed piece of held-out text.

    Its numbers are `explained_variance`, `l0` and `ce_score`, which is 1 for the model's own activations and 0 for
    zeros, and None where zeros do no harm. Special tokens are left out, and keep their activations.
    """
    import torch
    from sae_lens.util import get_special_token_ids, str_to_dtype

    target, size = plan.target, plan.settings.context_size
    contexts = list(itertools.islice(read_contexts(target, model, size, "heldout"), HELDOUT_CONTEXTS))
    if not contexts:
        return lambda sae: {}
    tokens_CT = torch.stack(contexts).to(model.cfg.device)
    special_ids = torch.tensor(get_special_token_ids(model.tokenizer), device=tokens_CT.device)  # type: ignore[arg-type]
    ordinary_CT = ~torch.isin(tokens_CT, special_ids)

    @torch.no_grad()
    def loss(replace: Callable[[Tensor], Tensor] | None) -> float:
        def splice(acts: Tensor, hook: Any) -> Tensor:
            new = replace(acts.flatten(2)).to(acts.dtype).view_as(acts) if replace else acts
            return torch.where(ordinary_CT.view(*ordinary_CT.shape, *[1] * (acts.ndim - 2)), new, acts)

        with lock_of(model):
            return model.run_with_hooks(tokens_CT, return_type="loss", fwd_hooks=[(target.hook_name, splice)]).item()

    clean, zeroed = loss(None), loss(lambda acts: acts * 0)

    def measure(sae: SAE[Any]) -> dict[str, float | None]:
        sums: dict[str, float] = {}

        def reconstruct(x: Tensor) -> Tensor:
            x = x.to(str_to_dtype(plan.settings.dtype))
            latents = sae.encode(x)
            out = sae.decode(latents)
            ordinary_x, kept = x[ordinary_CT].float(), latents[ordinary_CT]
            total = (ordinary_x - ordinary_x.mean(0)).pow(2).sum().item()
            error = (ordinary_x - out[ordinary_CT].float()).pow(2).sum().item()
            sums.update(l0=(kept != 0).sum(-1).float().mean().item(), explained=1 - error / max(total, 1e-12))
            return out

        spliced = loss(reconstruct)
        score = (zeroed - spliced) / (zeroed - clean) if zeroed > clean else math.nan
        return finite_or_none({"explained_variance": sums["explained"], "l0": sums["l0"], "ce_score": score})

    return measure


def synthetic_measure(plan: Plan, data: SyntheticData) -> Callable[[SAE[Any]], dict[str, float | None]]:
    """Return the function that measures an SAE on activations of a synthetic model that no training sees."""
    import torch
    from sae_lens.util import str_to_dtype

    dtype = str_to_dtype(plan.settings.dtype)
    x_ND = data.activations(HELDOUT_CONTEXTS, plan.settings.context_size, "log").flatten(0, 1).to(dtype)

    @torch.no_grad()
    def measure(sae: SAE[Any]) -> dict[str, float | None]:
        latents = sae.encode(x_ND)
        error = (x_ND - sae.decode(latents)).float().pow(2).sum() / (x_ND - x_ND.mean(0)).float().pow(2).sum()
        return finite_or_none(
            {"explained_variance": 1 - error.item(), "l0": (latents != 0).sum(-1).float().mean().item()}
        )

    return measure
