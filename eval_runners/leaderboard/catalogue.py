"""Tables of what the package holds, for its documents: variants with what they save as, evaluations with their time.

Plugins of other packages are left out, so that everyone gets the same tables.
"""

from __future__ import annotations

import ast
import importlib.util
import re
from collections.abc import Sequence
from pathlib import Path
from statistics import median

from eval_runners.contract.registry import evaluator_modules, evaluator_of_type
from eval_runners.store.read import Result, provenance_of
from sae_variants.registry.build import make_config
from sae_variants.registry.plugins import read_summary
from sae_variants.registry.variants import STOCK_PREFIX, stock_names, variant_modules

ARXIV = re.compile(r"\b\d{4}\.\d{4,5}\b")
REFERENCE_TARGET = "sandbox"
"""Target whose results say how long an evaluation takes."""


def variant_table() -> str:
    """Name, idea, paper and saved architecture of every variant of this package, and a line for SAELens' own.

    Imports sae_lens, which takes seconds.
    """
    lines = []
    for name, module in variant_modules().items():
        if module.startswith("sae_variants."):
            lines.append([f"`{name}`", _cell(read_summary(module)), _paper(module), _saved_architecture(name)])
    stock = ", ".join(f"`{name.removeprefix(STOCK_PREFIX)}`" for name in stock_names())
    lines.append([f"`{STOCK_PREFIX}ARCHITECTURE`", f"SAELens' own architectures: {stock}", "-", "itself"])
    return _table(["name", "idea", "paper", "saves as"], lines)


def evaluation_table(results: Sequence[Result]) -> str:
    """Name, question and minutes of every evaluation of this package.

    Minutes are the median time to evaluate one SAE, over published results on the default target; "-" without results.
    """
    seconds_of: dict[str, list[float]] = {}
    for result in results:
        provenance, evaluator = provenance_of(result), evaluator_of_type(result["eval_type_id"])
        seconds = provenance.get("seconds")
        if not evaluator or not isinstance(seconds, int | float):
            continue
        if provenance.get("target") == (evaluator.default_target or REFERENCE_TARGET):
            seconds_of.setdefault(evaluator.name, []).append(seconds)
    lines = [
        [f"`{name}`", _cell(read_summary(module)), _minutes(seconds_of.get(name, []))]
        for name, module in evaluator_modules().items()
        if module.startswith("eval_runners.")
    ]
    return _table(["name", "question", "minutes"], lines)


def _minutes(seconds: Sequence[float]) -> str:
    if not seconds:
        return "-"
    minutes = median(seconds) / 60
    return f"{minutes:.1f}" if minutes >= 0.05 else "< 0.1"


def _paper(module: str) -> str:
    """Link to the first arXiv paper of a module's docstring."""
    spec = importlib.util.find_spec(module)
    assert spec is not None, "discovery names modules that exist"
    assert spec.origin is not None, "a variant is a file"
    match = ARXIV.search(ast.get_docstring(ast.parse(Path(spec.origin).read_text())) or "")
    return f"[{match[0]}](https://arxiv.org/abs/{match[0]})" if match else "-"


def _saved_architecture(name: str) -> str:
    """Architecture that the variant's SAEs have once they are saved, and whether plain SAELens knows it."""
    from sae_lens.registry import get_sae_class

    config = make_config(name, d_in=256, d_sae=1024)  # wide enough for every default of k
    architecture = config.get_inference_config_class().architecture()
    is_stock = get_sae_class(architecture)[0].__module__.startswith("sae_lens.")
    return f"stock `{architecture}`" if is_stock else f"`{architecture}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _table(heads: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(cells)} |\n" for cells in (heads, ["---"] * len(heads), *lines))
