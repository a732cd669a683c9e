"""The report, as a reader has it: in headless Chromium, from disk. Skipped where there is no Chromium."""

from __future__ import annotations

import json

import pytest
from conftest import fetched, needs_chromium, opened
from test_leaderboard import made, over_seeds

from eval_runners.__main__ import main
from eval_runners.commands.leaderboard import BASELINES
from eval_runners.commands.report import render_report
from eval_runners.leaderboard.boards import make_boards
from eval_runners.store.read import read_results
from eval_runners.views.page import TEMPLATES

HOSTILE = "</script><script>document.body.dataset.broken='yes'</script><b>bold</b>"


def results():
    found = [
        *over_seeds("a", [0.90, 0.91, 0.92]), *over_seeds("b", [0.80, 0.81, 0.822]), *over_seeds("a[k=60]", [0.95, 0.96], l0=60.0),
        *over_seeds("a[window=2]", [0.91, 0.92], l0=29.0), *over_seeds("wide", [0.97, 0.98], d_sae=128), *over_seeds("random", [0.1, 0.2], trained=False, tokens=0), made(HOSTILE, ce=0.7),
    ]  # fmt: skip
    for result in found:
        densities = {"log10_from": -6, "bins_per_decade": 6, "counts": [1] * 36, "never": 2}
        result["eval_result_unstructured"]["densities"] = densities
        accuracies = {f"sae_top_{k}_test_accuracy": accuracy for k, accuracy in ((1, 0.6), (2, 0.7), (5, 0.8))}
        yield result
        yield result | {"eval_type_id": "sparse_probing", "eval_result_metrics": {"sae": accuracies}}


@pytest.fixture(scope="module")
def page(tmp_path_factory):
    file = tmp_path_factory.mktemp("report") / "report.html"
    others, _ = read_results([BASELINES])
    found = list(results())
    digest = found[0]["eval_result_unstructured"]["provenance"]["weight_hash"]
    log = [
        {"step": 1, "tokens": 10, "loss": 3.0, "heldout_l0": 40.0},
        {"step": 2, "tokens": 20, "loss": 2.0},
        {"step": 3, "tokens": 30, "loss": 1.5, "heldout_l0": 31.0},
    ]
    file.write_text(render_report(make_boards([*found, *others]), [], {digest: log}))
    return file


def cells(driver, column):
    script = "return [...document.querySelectorAll('#table tbody tr')].map(r => r.children[arguments[0]].textContent)"
    return driver.execute_script(script, column)


def click(driver, selector, number=0):
    driver.execute_script("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, number)


@needs_chromium
def test_every_panel_is_drawn_without_an_error_and_nothing_is_fetched(driver, page):
    opened(driver, page)
    panels = driver.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [f.querySelector('figcaption').textContent, f.querySelectorAll('.main-svg').length, f.querySelectorAll('.scatterlayer .trace').length])"
    )
    titles = [title for title, _, _ in panels]
    assert any(title.startswith("CE loss score") for title in titles)
    assert {"accuracy of probes ↑", "how often latents fire"} <= set(titles)
    assert {"training: loss", "training: held-out l0"} <= set(titles)
    assert all(drawn and traces for _, drawn, traces in panels), panels
    assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert fetched(driver) == []


@needs_chromium
def test_text_of_results_is_never_markup(driver, page):
    opened(driver, page)
    assert driver.execute_script("return document.body.dataset.broken") is None
    assert any("<b>bold</b>" in text for text in cells(driver, 0))


@needs_chromium
def test_our_board_comes_first_and_others_can_be_chosen(driver, page):
    opened(driver, page)
    assert {"a", "b", "a[k=60]", "wide", "random (untrained)"} <= set(cells(driver, 0))
    script = "const s = document.getElementById('board'); s.value = [...s.options].find(o => o.text.startsWith('pythia-160m')).value; s.onchange({ target: s })"
    driver.execute_script(script)
    assert len(cells(driver, 0)) == 126


@needs_chromium
def test_filters(driver, page):
    opened(driver, page)
    driver.execute_script("const s = document.getElementById('width'); s.value = '128'; s.onchange({ target: s })")
    assert cells(driver, 0) == ["wide"]
    driver.execute_script("const s = document.getElementById('width'); s.value = ''; s.onchange({ target: s })")
    script = "const s = document.getElementById('group'); s.value = [...s.options].find(o => o.text.startsWith('L0 ≈ 60')).value; s.onchange({ target: s })"
    driver.execute_script(script)
    assert cells(driver, 0) == ["a[k=60]"]
    driver.execute_script("const s = document.getElementById('group'); s.value = ''; s.onchange({ target: s })")
    boxes = driver.execute_script("return [...document.querySelectorAll('#names input')].map(b => b.value)")
    click(driver, "#names input", boxes.index("b"))
    assert "b" not in cells(driver, 0)
    assert "a" in cells(driver, 0)


@needs_chromium
def test_what_was_varied_and_other_evaluations_are_shown_when_asked_for(driver, page):
    opened(driver, page)
    assert "a[window=2]" not in cells(driver, 0)
    click(driver, "#varied")
    assert "a[window=2]" in cells(driver, 0)
    heads = "return [...document.querySelectorAll('#table th')].map(t => t.textContent)"
    assert "CE score ↑" in driver.execute_script(heads)
    script = "const s = document.getElementById('evaluation'); s.value = 'sparse_probing'; s.onchange({ target: s })"
    driver.execute_script(script)
    assert "CE score ↑" not in driver.execute_script(heads)
    titles = driver.execute_script(
        "return [...document.querySelectorAll('#scatters figcaption')].map(f => f.textContent)"
    )
    assert titles
    assert all(title.endswith("(sparse_probing)") for title in titles)


@needs_chromium
def test_a_row_opens_by_keyboard_and_says_where_it_comes_from(driver, page):
    from selenium.webdriver.common.keys import Keys

    opened(driver, page)
    driver.find_element("css selector", "#table td:first-child button").send_keys(Keys.ENTER)
    (text,) = driver.execute_script("return [...document.querySelectorAll('tr.details')].map(d => d.textContent)")
    assert "python -m eval_runners.core" in text
    assert "abc" in text
    assert "in CE loss score" in text
    assert driver.switch_to.active_element.get_attribute("aria-expanded") == "true"
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert not driver.find_elements("css selector", "tr.details")


@needs_chromium
def test_the_table_is_sorted_by_keyboard_and_the_untrained_stay_last(driver, page):
    from selenium.webdriver.common.keys import Keys

    opened(driver, page)
    heads = driver.execute_script("return [...document.querySelectorAll('#table th')].map(t => t.textContent)")
    column = heads.index("CE score ↑")
    button = driver.find_elements("css selector", "#table th button")[column]
    button.send_keys(Keys.ENTER)
    assert [text.partition(" ")[0] for text in cells(driver, column)] == [
        "0.975",
        "0.955",
        "0.910",
        "0.811",
        "0.700",
        "0.150",
    ]
    sort = "return document.querySelectorAll('#table th')[arguments[0]].getAttribute('aria-sort')"
    assert driver.execute_script(sort, column) == "descending"
    driver.switch_to.active_element.send_keys(Keys.ENTER)
    assert [text.partition(" ")[0] for text in cells(driver, column)] == [
        "0.700",
        "0.811",
        "0.910",
        "0.955",
        "0.975",
        "0.150",
    ]
    assert driver.execute_script(sort, column) == "ascending"


@needs_chromium
def test_light_and_dark_and_a_phone(driver, page):
    opened(driver, page)
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(colour)
    click(driver, "#theme")
    assert driver.execute_script(colour) != before
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        opened(driver, page)
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        widths = driver.execute_script(
            "return [...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().width)"
        )
        assert max(widths) <= 360
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_the_command(tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps(made("a")))
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    assert "1 rows on 1 boards" in capsys.readouterr().out
    assert (tmp_path / "page.html").stat().st_size < 5 * 2**20


def test_the_page_holds_no_address_but_those_of_its_libraries():
    text = "".join(path.read_text() for kind in ("*.html", "page.*") for path in TEMPLATES.glob(kind))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address
