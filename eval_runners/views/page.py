"""Pages that open from disk: one file each, with its data, its style and its script, that fetches nothing."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_variants.common.values import finite_or_none

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, data: Any, **more: str) -> str:
    """A page of this folder with its data. Text in the data is never taken for markup."""
    from jinja2 import Environment

    made = Environment(autoescape=True).from_string((TEMPLATES / template).read_text())
    shared = {"style": (TEMPLATES / "page.css").read_text(), "script": (TEMPLATES / "page.js").read_text()}
    return made.render(data=_inert(finite_or_none(data)), **shared, **more)


def _inert(data: Any) -> str:
    """JSON that cannot end the script element it stands in."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
