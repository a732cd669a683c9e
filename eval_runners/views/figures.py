"""Matplotlib figures as the bytes of image files, and the look of those that stand on pages of others."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.views.styles import INK, PAGES, Page
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_file_writable, write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

DPI = 110
COLOURS = 192
"""Colours of a PNG file with a background, which is a third as large as one with all colours."""
SHADES = {"light": (0.0, 0.6), "dark": (0.45, 1.0)}
"""Part of the colour map `plasma` that stands out from a page's background by a contrast of 3."""


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
    figure.savefig(buffer, dpi=DPI, bbox_inches=box, transparent=transparent, format=image_format, metadata=metadata)
    return _with_palette(buffer) if image_format == "png" and not transparent else buffer.getvalue()


def _with_palette(image: io.BytesIO) -> bytes:
    """Return a PNG file with few colours."""
    from PIL import Image

    small = io.BytesIO()
    Image.open(image).convert("RGB").quantize(COLOURS, dither=Image.Dither.NONE).save(small, "png", optimize=True)
    return small.getvalue()


@contextmanager
def style_for(page: Page) -> Iterator[None]:
    """Draw text, axes and grid in a colour that is readable on a page; the background is left to the page."""
    import matplotlib

    ink = INK.on(page)
    names = ("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color", "grid.color")
    look: dict[Any, Any] = {
        "axes.spines.top": False,
        "axes.spines.right": False,
        "grid.alpha": 0.25,
        "legend.frameon": False,
    }
    with matplotlib.rc_context({**dict.fromkeys(names, ink), **look}):
        yield


def shades(count: int, page: Page) -> list[tuple[float, float, float, float]]:
    """Colours of ordered lines, that stand out from a page."""
    import matplotlib
    import numpy as np

    return [tuple(colour) for colour in matplotlib.colormaps["plasma"](np.linspace(*SHADES[page], count))]


def dark_file(file: Path) -> Path:
    """Where the picture for dark pages lies: `headline-dark.png` beside `headline.png`."""
    return file.with_stem(f"{file.stem}-dark")


def check_pictures(file: Path, formats: Sequence[str], option: str) -> None:
    """Refuse, before any work, a picture of another format, or one that `write_pictures` could not write.

    Raises:
        UsageError: names the formats, or the file; `option` sets it.
    """
    if file.suffix.lower() not in formats:
        raise UsageError(f"{option} ends with {', '.join(formats)}, not {file.name!r}")
    for path in (file, dark_file(file)):
        check_file_writable(path, option)


def write_pictures(file: Path, draw: Callable[[Page], bytes], option: str) -> None:
    """Write a picture for light pages, and beside it one for dark pages.

    Raises:
        UsageError: a file cannot be written; `option` sets it.
    """
    pictures = [(file if page == "light" else dark_file(file), draw(page)) for page in PAGES]
    for path, content in pictures:
        write_atomically(path, content, option)
