"""Picture of one latent of a case study: where it fires, which logits it moves, and how strongly it fires."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.views.figures import DPI, style_for, to_image
from eval_runners.views.styles import SKY, Colour, Page
from sae_variants.common.errors import UsageError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FONT = "DejaVu Sans Mono"
"""Comes with matplotlib; a character is 0.602 of its size wide."""
CONTEXTS, BEFORE, AFTER, WORDS = 8, 36, 33, 6
"""Contexts, characters of them before and from the token on which the latent fires most, and tokens of its logits."""
WIDTH, HEIGHT = 902, 363
CHARACTER = 8
"""Pixels. Tokens are drawn one by one: within words they would part if they did not start at whole pixels."""
TEXT = Colour("#1d1f23", "#e6e7ea")
DRAWN = ("label", "score", "density", "max", "raised", "lowered", "histogram")
"""What is drawn of a latent, beside its contexts."""
SHADE, DARKEST = "#f08c1e", {"light": 0.85, "dark": 0.5}
"""Colour behind tokens, and its opacity at the latent's largest activation, as on the page."""


def read_page(file: Path) -> dict[str, Any]:
    """Read the data of a case study that was written as one page.

    Raises:
        UsageError: the file is no such page.
    """
    try:
        text = file.read_text("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"--page {file} cannot be read: give a page that case-study wrote") from error
    found = re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)
    try:
        data = json.loads(found[1]) if found else {}
    except ValueError:
        data = {}
    if not _is_case_study(data):
        raise UsageError(f"--page {file} holds no case study with latents: give a page that case-study wrote")
    if any("file" in row for row in data["latents"]):
        raise UsageError(f"--page {file} is that of a --folder, whose latents lie in other files: give one page")
    return data


def _is_case_study(data: Any) -> bool:
    """Whether a page's data has an SAE with latents that can be drawn, as far as they have contexts."""
    match data:
        case {"about": {"sae": str()}, "latents": [*rows]} if rows:
            return all(isinstance(row, dict) and "latent" in row for row in rows) and all(
                name in row for row in rows if row.get("top") for name in DRAWN
            )
    return False


def draw_latent(row: dict[str, Any], sae: str, page: Page) -> bytes:
    """Draw a latent.

    Args:
        row: the latent, as `describe_latents` returns it.
        sae: name of its SAE.
        page: background that the picture, which is transparent, is for.

    Returns:
        A PNG file.

    Raises:
        UsageError: the latent does not fire, or there is no text.
    """
    from matplotlib.figure import Figure

    if not row.get("top"):
        why = "is of a synthetic model, without text" if "truth" in row else "does not fire on this text"
        raise UsageError(f"--picture has nothing to draw: latent {row['latent']} {why}")
    with style_for(page):
        figure = Figure(figsize=(WIDTH / DPI, HEIGHT / DPI))
        score = "" if row["score"] is None else f", predicted by token patterns with F1 {row['score']:.2f}"
        title = f"Latent {row['latent']} of {sae} fires on {_shown(row['label'])}"
        figure.text(0.012, 0.925, title, size=12, weight="bold", color=TEXT.on(page), parse_math=False)
        about = f"On {100 * row['density']:.2g} % of tokens{score}. The darker a token, the larger the activation."
        figure.text(0.012, 0.86, about if page == "light" else about.replace("darker", "brighter"), size=9)
        place = (11 / WIDTH, 0.02, CHARACTER * (BEFORE + AFTER) / WIDTH, 0.78)
        _draw_contexts(figure.add_axes(place), row["top"][:CONTEXTS], row["max"], page)
        _draw_words(figure.add_axes((0.655, 0.36, 0.155, 0.4)), "raises the logits of", row["raised"], page)
        _draw_words(figure.add_axes((0.835, 0.36, 0.155, 0.4)), "lowers those of", row["lowered"], page)
        _draw_histogram(figure.add_axes((0.655, 0.14, 0.335, 0.15)), row["histogram"], page)
        return to_image(figure, "png", crop=False, transparent=True)


def _draw_contexts(axes: Axes, excerpts: Sequence[dict[str, Any]], largest: float, page: Page) -> None:
    """Draw a line for each context; the tokens with the largest activations stand below each other."""
    from matplotlib.patches import Rectangle

    axes.set(xlim=(0, BEFORE + AFTER), ylim=(CONTEXTS - 0.5, -0.5))
    axes.set_axis_off()
    size = CHARACTER / DPI * 72 / 0.602
    for line, excerpt in enumerate(excerpts):
        tokens = [_shown(token) for token in excerpt["tokens"]]
        before, after = "".join(tokens[: excerpt["at"]]), "".join(tokens[excerpt["at"] :])
        at = BEFORE - len(before)
        first, last = BEFORE - _whole_words(before[::-1], BEFORE), BEFORE + _whole_words(after, AFTER)
        for token, act in zip(tokens, excerpt["acts"], strict=True):
            start, end = max(at, first), min(at + len(token), last)
            if start < end:
                if act > 0:
                    alpha = (0.15 + 0.85 * min(1, act / largest)) * DARKEST[page]
                    box = Rectangle((start, line - 0.44), end - start, 0.88, color=SHADE, alpha=alpha, linewidth=0)
                    axes.add_patch(box)
                text = token[start - at : end - at]
                axes.text(start, line, text, color=TEXT.on(page), size=size, **_MONOSPACED)
            at += len(token)


def _draw_words(axes: Axes, title: str, words: Sequence[tuple[str, float]], page: Page) -> None:
    """Draw tokens over bars, as long as what the decoder row adds to their logits."""
    words = words[:WORDS]
    axes.set(xlim=(0, max([abs(value) for _, value in words], default=1) * 1.02), ylim=(WORDS - 0.5, -0.5))
    axes.set_title(title, fontsize=9, loc="left")
    axes.set_axis_off()
    for line, (word, value) in enumerate(words):
        axes.barh(line, abs(value), height=0.86, color=SKY.on(page), alpha=0.22)
        axes.text(0, line, f" {_shown(word)}", color=TEXT.on(page), size=8.5, **_MONOSPACED)
        axes.text(axes.get_xlim()[1], line, f"{value:.2f}", size=8, ha="right", va="center_baseline")


def _draw_histogram(axes: Axes, histogram: dict[str, Any], page: Page) -> None:
    """Draw how many tokens have which activation."""
    counts, low, high = histogram["counts"], histogram["low"], histogram["high"]
    step = (high - low) / len(counts) or 1.0
    axes.bar([low + (i + 0.5) * step for i in range(len(counts))], counts, width=0.9 * step, color=SKY.on(page))
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.set_xlabel("activation", fontsize=8, labelpad=1)
    axes.set_title(f"{sum(counts):,} tokens on which it fires", fontsize=9, loc="left", pad=3)


_MONOSPACED: dict[str, Any] = {"family": FONT, "va": "center_baseline", "parse_math": False}


def _whole_words(text: str, most: int) -> int:
    """How many characters of a text there is room for, up to the end of a word."""
    return len(text) if len(text) <= most else max(text.rfind(" ", 0, most + 1), 0) or most


def _shown(text: str) -> str:
    """Text with a sign in place of each character that would be invisible, or that the font does not have."""
    known = _font_characters()
    text = text.replace("\n", "⏎").replace("\t", "⇥")
    return "".join(character if character.isprintable() and ord(character) in known else "□" for character in text)


@cache
def _font_characters() -> frozenset[int]:
    from matplotlib.font_manager import findfont, get_font

    return frozenset(get_font(findfont(FONT)).get_charmap())
