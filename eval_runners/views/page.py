"""HTML pages that open from disk: each is one file with its data, style and script, and loads nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from sae_variants.common.values import finite_or_none

TEMPLATES = Path(__file__).parent / "templates"


def render_page(template: str, data: Any, **texts: Any) -> str:
    """Render a page. Text in the data is never read as markup; `file("name")` in a template is that file, unchanged.

    Args:
        template: file in `templates/`.
        data: JSON values; NaN and infinity become null.
        texts: further variables of the template; what they hold is never read as markup.
    """
    from jinja2 import Environment
    from markupsafe import Markup

    environment = Environment(autoescape=True)
    environment.globals["file"] = lambda name: Markup(_template(name))
    page = environment.from_string(_template(template))
    shared = {"style": _template("page.css"), "script": _template("page.js")}
    return page.render(data=_inert_json(finite_or_none(data)), **shared, **texts)


def _template(name: str) -> str:
    return (TEMPLATES / name).read_text("utf-8")


def _inert_json(data: Any) -> str:
    """JSON that cannot end the script element that holds it."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def script_call(function: str, data: Any) -> str:
    """A script file that calls a function of a page with data."""
    return f"{function}({_inert_json(finite_or_none(data))});\n"
