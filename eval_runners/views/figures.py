"""Matplotlib figures as the bytes of image files."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def to_png(figure: Figure) -> bytes:
    """Render a figure as a PNG file, cropped to what is drawn."""
    return to_image(figure, "png")


def to_image(figure: Figure, image_format: str, crop: bool = True, transparent: bool = False) -> bytes:
    """Render a figure as an image file.

    Args:
        figure: any figure.
        image_format: "png", "svg" or "pdf".
        crop: crop the image to what is drawn; this would undo a constrained layout.
        transparent: leave the background out.
    """
    buffer = io.BytesIO()
    metadata = {"Software": None} if image_format == "png" else None  # else pictures would differ between versions
    box = "tight" if crop else None
    figure.savefig(buffer, dpi=110, bbox_inches=box, transparent=transparent, format=image_format, metadata=metadata)
    return buffer.getvalue()
