"""Matplotlib figures as the bytes of image files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG file, cropped to what is drawn."""
    return to_image(figure, "png")


def to_image(figure: Figure, image_format: str) -> bytes:
    """Render a figure as an image file, cropped to what is drawn.

    Args:
        figure: any figure.
        image_format: "png", "svg" or "pdf".
    """
    buffer = io.BytesIO()
    figure.savefig(buffer, dpi=110, bbox_inches="tight", format=image_format)
    return buffer.getvalue()
