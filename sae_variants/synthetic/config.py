"""Check of a target's table `[synthetic]`: SAELens' SyntheticModelConfig, and two fields of ours."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, check_name, describe_error
from sae_variants.common.hashing import hash_value

if TYPE_CHECKING:
    from sae_lens.synthetic import SyntheticModelConfig
    from torch import Tensor

PRETRAINED, HALF_LIVES = "pretrained", "half_lives"
"""Fields of ours: the model's name on the Hub, and the range of half-lives of a sequence, in tokens."""
SAMPLES_VERSION = "samples 2"
"""Version of the samples that trainings see and of the initial weights; another one makes other SAEs and results."""
TABLES = ("firing_probability", "hierarchy", "correlation", "orthogonalization")
"""Fields that are tables."""
MOST_SEED = 2**63 - 1
"""Largest seed of a synthetic model."""
LOOKED_AT = 4096
"""Features whose firing probabilities are checked, so that a number that fits no memory is refused as such."""


def read_synthetic(table: Mapping[str, Any], where: str) -> SyntheticModelConfig:
    """Return SAELens' config of a table, after a check of every field.

    Args:
        table: Fields of SAELens' `SyntheticModelConfig`, and optionally `pretrained` and `half_lives`.
        where: Names the table in errors.

    Raises:
        UsageError: A field is unknown or out of its range.
    """
    from dataclasses import fields

    from sae_lens.synthetic import SyntheticModelConfig

    known = [field.name for field in fields(SyntheticModelConfig)]
    for name in table:
        check_name(f"field in {where}", name, [*known, PRETRAINED, HALF_LIVES])
    values = {"seed": 0, **{name: value for name, value in table.items() if name in known}}
    for name in ("num_features", "hidden_dim", "firing_probability"):
        if name not in values:
            raise UsageError(f"{where} has no {name}")
    for name in ("num_features", "hidden_dim"):
        if not isinstance(values[name], int) or values[name] < 2:
            raise UsageError(f"{name} in {where} must be a whole number of at least 2, not {values[name]!r}")
    if not isinstance(values["seed"], int) or not 0 <= values["seed"] <= MOST_SEED:
        raise UsageError(
            f"seed in {where} must be a whole number from 0 to {MOST_SEED}, so that the model can be made again"
        )
    if not isinstance(table.get(PRETRAINED, ""), str):
        raise UsageError(f"{PRETRAINED} in {where} must be a name on the Hub, ORG/NAME, not {table[PRETRAINED]!r}")
    for name in TABLES:
        if values.get(name) is not None and not isinstance(values[name], Mapping):
            raise UsageError(f"{name} in {where} must be a table of its own, [synthetic.{name}], not {values[name]!r}")
    _check_half_lives(table.get(HALF_LIVES), values, where)
    steps = (values.get("orthogonalization") or {}).get("num_steps", 0)
    if not isinstance(steps, int) or steps < 0:
        raise UsageError(f"num_steps of orthogonalization in {where} must be a whole number from 0 on, not {steps!r}")
    roots = (values.get("hierarchy") or {}).get("total_root_nodes")
    if isinstance(roots, int) and roots >= values["num_features"]:
        raise UsageError(
            f"hierarchy in {where} has {roots} roots and num_features is {values['num_features']}: no feature is left "
            "to be a child; lower total_root_nodes"
        )
    try:
        config = SyntheticModelConfig.from_dict(values)
        looked_at = min(config.num_features, LOOKED_AT)
        rates = config.firing_probability.generate(looked_at, seed=values["seed"])
        means = _generated(config.mean_firing_magnitudes, looked_at, values["seed"])
    except UsageError:
        raise
    except Exception as error:  # SAELens' configs check themselves in several ways
        raise UsageError(f"{where} cannot be used: {describe_error(error)}") from error
    if not bool(((rates > 0) & (rates <= 1)).all()):
        raise UsageError(f"{where} has firing probabilities from {rates.min():.3g} to {rates.max():.3g}, not in (0, 1]")
    if not bool((means > 0).all()):
        raise UsageError(
            f"{where} has mean firing magnitudes from {means.min():.3g} to {means.max():.3g}: a feature of 0 or less "
            "never fires; raise mean_firing_magnitudes"
        )
    return config


def _generated(values: Any, count: int, seed: int) -> Tensor:
    """Return the first values [count] of a field that is a number, or a distribution of SAELens."""
    import torch

    return torch.full((count,), float(values)) if isinstance(values, int | float) else values.generate(count, seed=seed)


def synthetic_id(synthetic: Mapping[str, Any]) -> str:
    """Return the hash of everything that determines a synthetic model and what is sampled from it."""
    return hash_value(dict(synthetic), size=4)


def _check_half_lives(half_lives: Any, values: Mapping[str, Any], where: str) -> None:
    if half_lives is None:
        return
    numbers = isinstance(half_lives, list) and all(isinstance(number, int | float) for number in half_lives)
    if not numbers or len(half_lives) != 2 or not 0 < half_lives[0] <= half_lives[1] < math.inf:
        raise UsageError(f"{HALF_LIVES} in {where} must be two numbers of tokens, [shortest, longest]")
    for name in ("hierarchy", "correlation"):
        if values.get(name) is not None:
            raise UsageError(
                f"{where} has {HALF_LIVES} and {name}: remove {name}, which would tie a feature's persistence to others"
            )
