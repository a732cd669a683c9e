"""Runs an evaluation of SAEBench that scores one SAE by its own `run_eval`, in a folder that is thrown away."""

from __future__ import annotations

import atexit
import contextlib
import json
import random
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any
from unittest import mock

from eval_runners.contract.contract import Context, Result
from eval_runners.saebench.shared import Preloaded, hide_output, mute_loggers
from eval_runners.store.envelope import sae_bench_release

if TYPE_CHECKING:
    from sae_lens import SAE


@contextlib.contextmanager
def in_own_folder(main: ModuleType, context: Context, seed: int) -> Iterator[Path]:
    """Give SAEBench's module the loaded model and an empty folder, and undo what it changes globally.

    SAEBench switches gradients on or off for good, and draws from the global random state, which only its command lines
    seed.
    """
    import torch

    has_gradients, states = torch.is_grad_enabled(), (random.getstate(), torch.get_rng_state())
    of_devices = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        if hasattr(main, "HookedTransformer"):
            stack.enter_context(mock.patch.object(main, "HookedTransformer", Preloaded(context.model)))
        stack.enter_context(hide_output(*([main] if hasattr(main, "tqdm") else [])))
        stack.enter_context(mute_loggers("sae_bench", "sae_lens"))
        random.seed(seed)
        torch.manual_seed(seed)
        try:
            yield folder
        finally:
            torch.set_grad_enabled(has_gradients)
            random.setstate(states[0])
            torch.set_rng_state(states[1])
            if of_devices:
                torch.cuda.set_rng_state_all(of_devices)


def lasting_folder() -> Path:
    """Return an empty folder that is removed when this process ends."""
    folder = Path(tempfile.mkdtemp(prefix="sae_variants"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return folder


def run_eval(main: ModuleType, config: Any, sae: SAE[Any], context: Context, folder: Path, **options: Any) -> Result:
    """Run `run_eval` of a module of SAEBench on one SAE, and return the result that it wrote.

    Args:
        main: The module.
        config: Its config.
        sae: In inference form.
        context: The loaded model and the device.
        folder: Of `in_own_folder`.
        options: Further arguments of `run_eval`.
    """
    (folder / "result").mkdir()
    where = {"device": context.device, "output_path": str(folder / "result")}
    main.run_eval(config, [("sae", sae)], **where, force_rerun=True, **options)
    files = list((folder / "result").rglob("*.json"))
    if len(files) != 1:
        raise RuntimeError(f"{main.__name__} wrote no result and gave no reason")
    output: Result = json.loads(files[0].read_text())
    output["sae_bench_commit_hash"] = sae_bench_release()
    return output
