"""Sweeps over config fields: `--grid window=2,4,8 --grid consistency=contrastive,variance` gives six grid points.

Variations are not multiplied with each other: `--vary cosine_coefficient=0 --vary progressive=false,lower_k=30` gives
three points, the plain SAE and one for each variation, as an ablation needs them. With a grid, each of its points has
all variations.

The SAEs of a sweep are ordinary ones. They train in one stream, and each ends with the weights that it has when trained
alone. Finished SAEs are found again, so an interrupted or extended grid trains only what is missing.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.common.values import parse_value, split_values
from sae_variants.language_model.target import Target
from sae_variants.registry.variants import check_variant_name, split_part
from sae_variants.training.plan import Plan, applicable_overrides, check_overrides, make_plan
from sae_variants.training.recipe import check_recipe, check_settings, l0_fields
from sae_variants.training.settings import make_settings

GridPoint = dict[str, Any]


def parse_grid(options: list[str], variations: list[str] | None = None) -> list[GridPoint]:
    """Return every combination of the values of a grid; one empty point if there are no options.

    Args:
        options: `field=value,value` of --grid.
        variations: `field=value,field=value` of --vary, each of which changes every combination.

    Raises:
        UsageError: An option is not written like that, or names a field twice.
    """
    axes: dict[str, list[Any]] = {}
    for option in options:
        name, equals, text = option.partition("=")
        field = _field(name)
        values = [parse_value(value) for value in split_values(text) if value]
        if not equals or not field or not values:
            raise UsageError(f"--grid is written FIELD=VALUE,VALUE,..., not {option!r}")
        if field in axes:
            raise UsageError(f"--grid names {field} twice: give all its values at once")
        axes[field] = [value for i, value in enumerate(values) if value not in values[:i]]
    points = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    changes: list[GridPoint] = [{}, *(_variation(option) for option in variations or [])]
    for field in grid_fields(changes):
        if field in axes:
            raise UsageError(f"{field} is given twice: in --grid and in --vary")
    return [{**point, **change} for point in points for change in changes]


def _variation(option: str) -> GridPoint:
    parts = [part.partition("=") for part in split_values(option)]
    if not all(equals and _field(field) and value.strip() for field, equals, value in parts):
        raise UsageError(f"--vary is written FIELD=VALUE,FIELD=VALUE,..., not {option!r}")
    return {_field(field): parse_value(value.strip()) for field, _, value in parts}


def _field(text: str) -> str:
    return text.strip().lstrip("-").replace("-", "_").replace(".", "_")


def grid_fields(points: list[GridPoint]) -> list[str]:
    """Return every field that a grid point sets."""
    return list(dict.fromkeys(field for point in points for field in point))


def check_sweep(
    names: list[str], target: Target, overrides: dict[str, Any], points: list[GridPoint], seeds: list[int]
) -> None:
    """Refuse what cannot be planned whatever the variant, before variants are imported, which takes seconds.

    Args:
        names: Names of SAEs.
        target: Language model, hook and text.
        overrides: Fields that are the same at every grid point.
        points: Grid points.
        seeds: Training seeds.

    Raises:
        UsageError: A name is misspelt, a field is set both in the grid and outside it, or a setting is refused.
    """
    for field in grid_fields(points):
        if field in overrides:
            raise UsageError(f"{field} is given twice: in --grid or --vary, and by itself")
        if field == "seed":
            raise UsageError("seeds are not part of the grid: give --seeds")
    for name in names:
        check_variant_name(name)
    check_settings(target)
    for name, point, seed in itertools.product(names, points, seeds):
        recipe = {**target.train, **target.variants.get(split_part(name)[0], {})}
        make_settings({**recipe, **overrides, **point, "seed": seed})


def make_plans(
    names: list[str],
    target: Target,
    overrides: dict[str, Any],
    points: list[GridPoint],
    seeds: list[int],
    root: str | Path | None = None,
    l0: float | None = None,
) -> list[Plan]:
    """Return a plan per name, grid point and seed; an SAE without a field of the grid occurs once for all its values.

    Args:
        names: Names of SAEs.
        target: Language model, hook and text.
        overrides: Fields that are the same at every grid point.
        points: Grid points.
        seeds: Training seeds.
        root: Root of trained SAEs.
        l0: Latents that fire per token; None for what the recipe and the other arguments say.

    Raises:
        UsageError: No SAE has a field or the name, nothing gives an SAE that L0, or `check_sweep` refuses.
    """
    check_sweep(names, target, overrides, points, seeds)
    check_recipe(target)
    check_overrides(names, {**overrides, **dict.fromkeys(grid_fields(points))})
    given = {*overrides, *grid_fields(points)}
    l0_of = {name: l0_fields(name, l0, target, given) if l0 is not None else {} for name in names}
    plans = [
        make_plan(
            name, target, {**applicable_overrides(name, {**overrides, **point}), **l0_of[name], "seed": seed}, root
        )
        for name in names
        for point in points
        for seed in seeds
    ]
    return list({plan.sae_folder: plan for plan in plans}.values())
