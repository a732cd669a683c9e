"""One colour, one marker and one dash pattern for every architecture, the same in the report and in all pictures.

A colour has a shade for light pages and one for dark pages. In each the colours are separated in simulations of
protanopia, deuteranopia and tritanopia. There are more architectures than such colours: those that share a colour have
other dashes and markers, and those that are often drawn together have other markers, so that they can be told apart in
grey print.
Source: simulation by Machado, Oliveira and Fernandes, IEEE TVCG 15(6), 2009. Pure: imports no torch, no matplotlib.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Literal, NamedTuple, get_args
from zlib import crc32

Page = Literal["light", "dark"]
"""Background that something is drawn for."""
PAGES: tuple[Page, ...] = get_args(Page)


class Colour(NamedTuple):
    """A colour in two shades, #rrggbb: both stand out from their background by a contrast of 3 (WCAG 2.2, 1.4.11)."""

    light: str
    """On a light page."""
    dark: str
    """On a dark page."""

    def on(self, page: Page) -> str:
        """The shade for a page."""
        return self.dark if page == "dark" else self.light


BLUE, GOLD = Colour("#0f5996", "#4b6aa4"), Colour("#c08800", "#d99e08")
GREEN, RUST = Colour("#0da853", "#14b15a"), Colour("#ae4712", "#b24a15")
SKY, LILAC = Colour("#4f8cfd", "#4e8fff"), Colour("#ab82c7", "#bc97dd")
VIOLET, BROWN = Colour("#6430de", "#7743f3"), Colour("#814743", "#955a55")
COLOURS = (BLUE, GOLD, GREEN, RUST, SKY, LILAC, VIOLET, BROWN)
GREY = Colour("#7c8691", "#7d8590")
"""Colour of controls."""
INK = Colour("#59636e", "#9198a1")
"""Colour of text and axes of transparent pictures."""
MARKERS = {
    "circle": "o",
    "square": "s",
    "diamond": "D",
    "triangle-up": "^",
    "triangle-down": "v",
    "cross": "P",
    "x": "X",
    "star": "*",
    "pentagon": "p",
    "hexagon": "H",
    "triangle-left": "<",
    "triangle-right": ">",
    "octagon": "8",
    "diamond-tall": "d",
}
"""Marker in Plotly -> in matplotlib."""
DASHES: dict[str, tuple[float, ...]] = {
    "solid": (),
    "dash": (6, 3),
    "dot": (1.5, 2.5),
    "dashdot": (8, 2.5, 1.5, 2.5),
    "dashdotdot": (8, 2.5, 1.5, 2.5, 1.5, 2.5),
}
"""Pattern of a line -> lengths of its dashes and gaps: pixels on a page, line widths in matplotlib."""


class Style(NamedTuple):
    """How an architecture is drawn."""

    colour: Colour
    marker: str
    """A key of `MARKERS`."""
    dash: str = "solid"
    """A key of `DASHES`."""

    @property
    def matplotlib_marker(self) -> str:
        """The marker's name in matplotlib."""
        return MARKERS[self.marker]

    @property
    def matplotlib_dash(self) -> Any:
        """The line's style in matplotlib."""
        return (0, DASHES[self.dash]) if DASHES[self.dash] else "-"


KNOWN = {
    "stock:batchtopk": Style(BLUE, "circle"),
    "temporal": Style(RUST, "triangle-up"),
    "refined": Style(SKY, "diamond"),
    "refined_gated": Style(SKY, "diamond-tall", "dashdot"),
    "topk": Style(GREEN, "square"),
    "stock:topk": Style(LILAC, "cross"),
    "stock:matryoshka_batchtopk": Style(GOLD, "triangle-down"),
    "tree": Style(VIOLET, "star"),
    "stock:standard": Style(BROWN, "x"),
    "stock:jumprelu": Style(RUST, "triangle-left", "dash"),
    "stock:gated": Style(GREEN, "triangle-right", "dash"),
    "stock:matching_pursuit": Style(GOLD, "octagon", "dash"),
    "hierarchical": Style(SKY, "pentagon", "dash"),
    "hierarchical:lower": Style(SKY, "hexagon", "dot"),
    "dual_adaptive": Style(BROWN, "pentagon", "dash"),
    "dual_adaptive:lower": Style(BROWN, "hexagon", "dot"),
    "learnable_dual": Style(VIOLET, "pentagon", "dash"),
    "learnable_dual:lower": Style(VIOLET, "hexagon", "dot"),
    "panneal": Style(VIOLET, "octagon", "dashdot"),
    "random": Style(GREY, "circle"),
    "pca": Style(GREY, "square", "dash"),
    "frozen_decoder": Style(GREY, "triangle-up", "dot"),
    "frozen_encoder": Style(GREY, "triangle-down", "dashdot"),
    "soft_frozen_decoder": Style(GREY, "diamond", "dashdotdot"),
}
"""Architecture -> style."""
PUBLISHED = {"matryoshka": "stock:matryoshka_batchtopk"}
"""Names that others give architectures -> ours."""
CONTROLS = frozenset(name for name, style in KNOWN.items() if style.colour == GREY)
"""Architectures that other SAEs are compared with, and that pictures need not fit."""


def architecture_of(name: str) -> str:
    """The architecture in a row's name: those of others have their L0 behind it, `SAEBench/batchtopk L0=19`."""
    return name.partition(" ")[0]


def styles_of(architectures: Iterable[str]) -> dict[str, Style]:
    """Choose a style for each architecture of a page.

    A known architecture always has the same one. A published one, `SAEBench/batchtopk`, has that of `stock:batchtopk`
    unless the page shows both. Others have one by their name, or the next that the page does not use yet.

    Args:
        architectures: names; repeated ones count once.

    Returns:
        Architecture -> style, in alphabetical order. No two have one colour and dash while there are such pairs left
        (40), and no two are equal while there are styles left (560).
    """
    names = sorted(set(architectures))
    chosen = {name: KNOWN[name] for name in names if name in KNOWN}
    for name in names:
        if name not in chosen:
            used, pairs = set(chosen.values()), {(style.colour, style.dash) for style in chosen.values()}
            wanted = list(_wanted_styles(name))
            fresh = [style for style in wanted if style not in used] or wanted
            chosen[name] = next((style for style in fresh if (style.colour, style.dash) not in pairs), fresh[0])
    return {name: chosen[name] for name in names}


def _wanted_styles(name: str) -> Iterator[Style]:
    """Styles for an architecture that has none of its own, the preferred one first."""
    published = name.rpartition("/")[2].lower()
    for known in (PUBLISHED.get(published, f"stock:{published}"), published):
        if "/" in name and known in KNOWN:
            yield KNOWN[known]
    every = [Style(colour, marker, dash) for dash in DASHES for marker in MARKERS for colour in COLOURS]
    start = crc32(name.encode()) % len(every)
    yield from every[start:] + every[:start]
