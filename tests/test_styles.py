"""Colours and markers of architectures: distinct on a page, for colour-blind readers, in print, and defined once."""

from __future__ import annotations

import re

import numpy as np
import pytest

from eval_runners.views.figures import shades
from eval_runners.views.grid_picture import _line_styles
from eval_runners.views.page import TEMPLATES
from eval_runners.views.styles import COLOURS, DASHES, GREY, INK, KNOWN, MARKERS, PAGES, styles_of
from sae_variants import names

PRINT = ("stock:batchtopk", "temporal", "refined", "topk", "stock:topk", "stock:matryoshka_batchtopk", "tree")
BLINDNESS = {
    "none": np.eye(3),
    "protanopia": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deuteranopia": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritanopia": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}
"""Matrices on linear RGB, Machado et al. 2009, severity 1."""


def linear_rgb(colour):
    rgb = np.array([int(colour[at : at + 2], 16) for at in (1, 3, 5)]) / 255
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb):
    to_xyz = np.array(
        [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    )
    xyz = np.clip(to_xyz @ rgb / np.array([0.95047, 1, 1.08883]), 0, None)
    x, y, z = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("page", PAGES)
@pytest.mark.parametrize("kind", BLINDNESS)
def test_colours_are_distinct_for_colour_blind_readers(kind, page):
    drawn = [linear_rgb(colour.on(page)) for colour in (*COLOURS, GREY)]
    seen = [lab(np.clip(np.array(BLINDNESS[kind]) @ rgb, 0, 1)) for rgb in drawn]
    distances = [np.linalg.norm(a - b) for i, a in enumerate(seen) for b in seen[:i]]
    assert min(distances) > 20, "CIE 1976; 2.3 is just noticeable"


def contrast(one, other):
    """Contrast ratio of two colours, WCAG 2.2."""
    dark, light = sorted(float(np.array([0.2126, 0.7152, 0.0722]) @ linear_rgb(each)) + 0.05 for each in (one, other))
    return light / dark


def backgrounds(page):
    """What our pages are drawn on, by their style sheet, and GitHub's pages, on which the pictures stand."""
    style = (TEMPLATES / "page.css").read_text().splitlines()[page == "dark"]
    return [*re.findall(r"--(?:back|panel): (#[0-9a-f]{6})", style), {"light": "#ffffff", "dark": "#0d1117"}[page]]


@pytest.mark.parametrize("page", PAGES)
def test_colours_stand_out_from_their_backgrounds(page):
    ordered = ["#" + "".join(f"{round(255 * part):02x}" for part in colour[:3]) for colour in shades(6, page)]
    grounds = backgrounds(page)
    assert len(grounds) == 3
    for ground in grounds:
        for colour in (*(each.on(page) for each in (*COLOURS, GREY)), *ordered):
            assert contrast(colour, ground) >= 3, (colour, ground)
        assert contrast(INK.on(page), ground) >= 4.5


def test_no_two_of_a_page_share_colour_and_marker():
    others = [f"other/{number}" for number in range(len(COLOURS) * len(MARKERS) - len(KNOWN))]
    styles = styles_of([*KNOWN, *others, "SAEBench/batchtopk"])
    assert len(set(styles.values())) == len(styles)
    assert {name: styles[name] for name in KNOWN} == KNOWN


def test_no_two_known_architectures_share_colour_and_dashes_or_colour_and_marker():
    assert len({(style.colour, style.dash) for style in KNOWN.values()}) == len(KNOWN)
    assert len({(style.colour, style.marker) for style in KNOWN.values()}) == len(KNOWN)
    assert {style.dash for style in KNOWN.values()} <= DASHES.keys()
    assert len(set(DASHES.values())) == len(DASHES)


def test_unknown_architectures_take_colour_and_dashes_that_are_free():
    free = len(COLOURS) * len(DASHES) - sum(style.colour != GREY for style in KNOWN.values())
    styles = styles_of([*KNOWN, *(f"other/{number}" for number in range(free))])
    assert len({(style.colour, style.dash) for style in styles.values()}) == len(styles)


def test_pictures_draw_the_dashes():
    figure_styles = _line_styles(["refined", "hierarchical", "hierarchical:lower", "refined[k=1]"])
    looks = [(style["color"], style["linestyle"]) for style in figure_styles.values()]
    assert len(set(looks[:3])) == 3
    assert len({str(style) for style in figure_styles.values()}) == 4
    assert looks[1] == (KNOWN["hierarchical"].colour.light, (0, DASHES["dash"]))


def test_what_is_drawn_together_differs_in_grey_print():
    assert len({KNOWN[name].marker for name in PRINT}) == len(PRINT)


def test_every_variant_has_a_style_of_its_own():
    own = [name for name in names() if not name.startswith("stock:")]
    assert not [name for name in own if name not in KNOWN]


def test_a_published_architecture_has_the_style_of_ours_unless_both_are_shown():
    assert styles_of(["SAEBench/batchtopk"])["SAEBench/batchtopk"] == KNOWN["stock:batchtopk"]
    both = styles_of(["SAEBench/batchtopk", "stock:batchtopk"])
    assert both["SAEBench/batchtopk"] != both["stock:batchtopk"] == KNOWN["stock:batchtopk"]


def test_an_unknown_name_has_the_same_style_on_pages_that_do_not_clash():
    assert styles_of(["mine", "topk"])["mine"] == styles_of(["mine", "tree"])["mine"]


def test_there_is_no_second_palette():
    own = {shade for colour in (*COLOURS, GREY) for shade in colour}
    for path in [*TEMPLATES.glob("*"), *TEMPLATES.parent.glob("*.py")]:
        if path.name != "styles.py" and path.is_file():
            assert not [one for one in re.findall(r"#[0-9a-f]{6}", path.read_text()) if one in own], path
            assert "tab10" not in path.read_text(), path
