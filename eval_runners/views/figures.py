"""Matplotlib figures as PNG files."""

from __future__ import annotations

import io
from typing import Any


def to_png(figure: Any) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight")
    return buffer.getvalue()
