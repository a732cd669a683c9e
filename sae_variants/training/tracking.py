"""Tracking libraries that receive the numbers of a log beside its file."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from typing import Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.training.plan import Plan

LIBRARIES = ("trackio", "wandb", "tensorboard")
PROJECT = "sae-variants"


def check_library(library: str) -> None:
    """Raise a UsageError if a library is unknown, is not installed, or cannot send without a key that is missing."""
    if library not in LIBRARIES:
        raise UsageError(f"--log must be file, {', '.join(LIBRARIES)}, not {library!r}")
    if importlib.util.find_spec(library) is None:
        raise UsageError(
            f"--log {library} needs a package that is not installed: "
            f"pip install 'sae-variants[{library}]', or give --log alone for a file"
        )
    if library == "wandb":
        _check_wandb()


def _check_wandb() -> None:
    """Raise a UsageError if wandb would send numbers, and has no valid key to send them with."""
    import wandb

    if wandb.setup().settings.mode in ("offline", "disabled", "dryrun"):
        return
    try:
        is_logged_in, reason = wandb.login(prompt=False, verify=False), "it has no API key"
    except TypeError:  # an older version cannot be asked without a prompt
        return
    except Exception as error:
        is_logged_in, reason = False, describe_error(error)
    if not is_logged_in:
        raise UsageError(
            f"--log wandb cannot be used: {reason.rstrip('.')}; run `wandb login`, set WANDB_MODE=offline, or give "
            "--log alone for a file"
        )


def connect(library: str, plan: Plan) -> Callable[[dict[str, float] | None, int], None]:
    """Return a function that sends the numbers of a step to a tracking library; None ends the run."""
    name = f"{plan.label} seed {plan.settings.seed}"
    if library == "tensorboard":
        from torch.utils.tensorboard import SummaryWriter

        writer = SummaryWriter(str(plan.folder.with_name(f"{plan.folder.name}.tensorboard")))

        def write(numbers: dict[str, float] | None, step: int) -> None:
            for key, value in (numbers or {}).items():
                writer.add_scalar(key, value, step)
            if numbers is None:
                writer.close()

        return write
    if library == "wandb":
        import wandb

        options: dict[str, Any] = {"id": plan.folder.name, "resume": "allow", "reinit": "create_new"}
        run: Any = wandb.init(project=PROJECT, name=name, config=plan.key, **options)
    else:
        trackio: Any = importlib.import_module("trackio")
        run = trackio.init(project=PROJECT, name=name, config=plan.key, resume="allow")

    def send(numbers: dict[str, float] | None, step: int) -> None:
        if numbers is None:
            run.finish()
        else:
            run.log(numbers, step=step)

    return send
