"""A grid over fields of configs: `--grid window=2,4,8 --grid consistency=contrastive,variance` is six cells.

Variations are not multiplied: `--vary cosine_coefficient=0 --vary progressive=false,lower_k=30` is three cells, the
plain SAE and one for each, which is what an ablation wants; beside a grid, they are so for each of its cells.

Cells are ordinary SAEs. They train in one stream, each ends with the weights it has alone, and the finished ones are
found again: a grid that was interrupted, or grows by a value, goes on with what is missing.
"""

from __future__ import annotations

import itertools
from typing import Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.target import Target
from sae_variants.training.plan import Plan, applicable_overrides, check_overrides, make_plan

GridPoint = dict[str, Any]


def parse_grid(options: list[str], variations: list[str] | None = None) -> list[GridPoint]:
    """Every combination of the values of `field=value,value` options; one empty cell where there is none.

    Args:
        variations: `field=value,field=value` options, each a set of fields that is changed in every combination.
    """
    from sae_variants.common.values import parse_value

    axes: dict[str, list[Any]] = {}
    for option in options:
        field, equals, values = option.partition("=")
        field = _field(field)
        found = [parse_value(value.strip()) for value in values.split(",") if value.strip()]
        if not equals or not field or not found:
            raise UsageError(f"--grid is written FIELD=VALUE,VALUE,..., not {option!r}")
        if field in axes:
            raise UsageError(f"--grid names {field} twice: give all its values at once")
        axes[field] = list(dict.fromkeys(found))
    cells = [dict(zip(axes, values, strict=True)) for values in itertools.product(*axes.values())]
    changes: list[GridPoint] = [{}, *(_variation(option) for option in variations or [])]
    for field in grid_fields(changes):
        if field in axes:
            raise UsageError(f"{field} is given twice: in --grid and in --vary")
    return [{**cell, **change} for cell in cells for change in changes]


def _variation(option: str) -> GridPoint:
    from sae_variants.common.values import parse_value

    parts = [part.partition("=") for part in option.split(",")]
    if not all(equals and _field(field) and value.strip() for field, equals, value in parts):
        raise UsageError(f"--vary is written FIELD=VALUE,FIELD=VALUE,..., not {option!r}")
    return {_field(field): parse_value(value.strip()) for field, _, value in parts}


def _field(text: str) -> str:
    return text.strip().lstrip("-").replace("-", "_").replace(".", "_")


def grid_fields(cells: list[GridPoint]) -> list[str]:
    """Every field that a cell sets."""
    return list(dict.fromkeys(field for cell in cells for field in cell))


def make_plans(
    names: list[str], target: Target, overrides: GridPoint, cells: list[GridPoint], seeds: list[int], root: Any = None
) -> list[Plan]:
    """One plan per name, cell and seed. An SAE that lacks a field of the grid stands once for all its values.

    Raises:
        UsageError: a field that no SAE has, or one both in the grid and outside it.
    """
    check_overrides(names, {**overrides, **dict.fromkeys(grid_fields(cells))})
    for field in grid_fields(cells):
        if field in overrides:
            raise UsageError(f"{field} is given twice: in --grid or --vary, and by itself")
        if field == "seed":
            raise UsageError("seeds are not part of the grid: give --seeds")
    made = [
        make_plan(name, target, {**applicable_overrides(name, {**overrides, **cell}), "seed": seed}, root)
        for name in names
        for cell in cells
        for seed in seeds
    ]
    return list({plan.sae_folder: plan for plan in made}.values())
