"""The report, as a reader has it: in headless Chromium, from disk. Skipped where there is no Chromium."""

from __future__ import annotations

import csv
import json
import time
from pathlib import Path

import pytest
from conftest import check_accessible, fetched, needs_axe, needs_chromium
from scipy.special import stdtr
from test_leaderboard import made, over_seeds

import eval_runners
from eval_runners.__main__ import main
from eval_runners.commands.leaderboard import BASELINES
from eval_runners.commands.report import render_report
from eval_runners.contract.registry import GROUPS
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.render import board_title
from eval_runners.store.read import PUBLISHED, read_results
from eval_runners.store.seeds import holm, t_quantile
from eval_runners.views.page import TEMPLATES
from eval_runners.views.report_data import QUESTIONS

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


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """The page of all results that come with the package, and its boards."""
    file = tmp_path_factory.mktemp("published") / "report.html"
    found, _ = read_results([PUBLISHED, BASELINES])
    boards = make_boards(found)
    file.write_text(render_report(boards, []))
    return file, boards


def cells(driver, column):
    script = "return [...document.querySelectorAll('#table tbody tr')].map(r => r.children[arguments[0]].textContent)"
    return drawn(driver).execute_script(script, column)


def drawn(driver):
    """Wait until the panels of the groups that are open have been drawn."""
    for _ in range(400):
        if driver.execute_script("return document.body.dataset.drawn") == "yes":
            return driver
        time.sleep(0.05)
    raise AssertionError(driver.get_log("browser"))


def visit(driver, address):
    driver.get("about:blank")
    driver.get(address)
    for _ in range(400):
        if driver.execute_script("return document.body.dataset.ready") == "yes":
            return drawn(driver)
        time.sleep(0.05)
    raise AssertionError(driver.get_log("browser"))


def at(driver, page, view=""):
    """Open the page, with what follows # in its address."""
    return visit(driver, page.as_uri() + view)


def select(driver, name, text):
    """Choose the first option of a menu that begins with a text."""
    script = (
        "const s = document.getElementById(arguments[0]);"
        "s.value = [...s.options].find(o => o.text.startsWith(arguments[1])).value; s.onchange({ target: s })"
    )
    driver.execute_script(script, name, text)
    drawn(driver)


def texts(driver, selector):
    return driver.execute_script(
        "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)", selector
    )


def click(driver, selector, number=0):
    driver.execute_script("document.querySelectorAll(arguments[0])[arguments[1]].click()", selector, number)
    drawn(driver)


@needs_chromium
def test_every_panel_is_drawn_without_an_error_and_nothing_is_fetched(driver, page):
    at(driver, page)
    assert not driver.find_elements("css selector", "#groups figure"), "groups draw when they are opened"
    questions = texts(driver, "#groups details:not([hidden]) > summary")
    for number in range(len(questions)):
        click(driver, "#groups details:not([hidden]) > summary", number)
        time.sleep(0.1)
        drawn(driver)
    panels = driver.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [f.querySelector('figcaption').textContent, f.querySelectorAll('.main-svg').length, f.querySelectorAll('.scatterlayer .trace').length])"
    )
    titles = [title for title, _, _ in panels]
    assert titles[0].startswith("explained variance ↑ over L0")
    assert titles[1].startswith("Difference to a at L0 ≈ 30.0")
    assert any(title.startswith("CE loss score") for title in titles)
    assert {"accuracy of probes ↑", "how often latents fire"} <= set(titles)
    assert {"training: loss", "training: held-out l0"} <= set(titles)
    assert all(drawn and traces for _, drawn, traces in panels), panels
    assert [text.partition(" ")[0] for text in questions] == ["Reconstruction", "Probing", "Training"]
    assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert fetched(driver) == []


@needs_chromium
def test_text_of_results_is_never_markup(driver, page):
    at(driver, page, "#open=reconstruction&varied=yes&metric=core.ce_loss_score")
    assert driver.execute_script("return document.body.dataset.broken") is None
    assert not driver.execute_script("return document.querySelectorAll('main b, header b').length")
    assert any("<b>bold</b>" in text for text in cells(driver, 0))


@needs_chromium
def test_our_board_comes_first_and_others_can_be_chosen(driver, page):
    at(driver, page)
    assert {"a", "b", "a[k=60]", "wide", "random (untrained)"} <= set(cells(driver, 0))
    select(driver, "board", "pythia-160m")
    assert len(cells(driver, 0)) == 60
    click(driver, "#long")
    assert len(cells(driver, 0)) == 126


@needs_chromium
def test_filters(driver, page):
    at(driver, page)
    select(driver, "width", "128")
    assert cells(driver, 0) == ["wide"]
    select(driver, "width", "all")
    select(driver, "group", "L0 ≈ 60")
    assert cells(driver, 0) == ["a[k=60]"]
    select(driver, "group", "L0 of most")
    boxes = driver.execute_script("return [...document.querySelectorAll('#names input')].map(b => b.value)")
    click(driver, "#names input", boxes.index("b"))
    assert "b" not in cells(driver, 0)
    assert "a" in cells(driver, 0)


@needs_chromium
def test_the_search_box_and_a_link_that_restores_the_view(driver, page):
    at(driver, page)
    driver.find_element("css selector", "#query").send_keys("K=60")
    assert cells(driver, 0) == ["a[k=60]"]
    select(driver, "metric", "CE score")
    click(driver, "#table th button", 1)
    click(driver, "#full")
    click(driver, "#groups details > summary")
    time.sleep(0.1)
    link = drawn(driver).current_url
    assert "query=K%3D60" in link
    visit(driver, link)
    assert cells(driver, 0) == ["a[k=60]"]
    chosen = "return [document.getElementById('metric').value, document.getElementById('full').checked, document.querySelectorAll('#groups details[open] figure').length > 0, document.querySelectorAll('#table th')[1].getAttribute('aria-sort')]"
    assert driver.execute_script(chosen) == ["core.ce_loss_score", True, True, "descending"]
    visit(driver, page.as_uri() + "#query=b")
    compared = "return document.querySelector('#against .plot').records.map(r => r.SAE)"
    assert {"a", "b"} <= set(driver.execute_script(compared)), "a search leaves the baseline"
    driver.execute_script("location.hash = ''")
    time.sleep(0.2)
    assert "wide" in cells(drawn(driver), 0)


@needs_chromium
def test_what_was_varied_and_other_evaluations_are_shown_when_asked_for(driver, page):
    at(driver, page)
    assert "a[window=2]" not in cells(driver, 0)
    click(driver, "#varied")
    assert "a[window=2]" in cells(driver, 0)
    assert "CE score ↑" in texts(driver, "#table th")
    select(driver, "columns", "probing")
    assert "CE score ↑" not in texts(driver, "#table th")
    assert "accuracy, k = 1 ↑" in texts(driver, "#table th")


@needs_chromium
def test_the_page_says_what_is_compared_and_what_came_out(driver, page):
    at(driver, page, "#metric=core.ce_loss_score")
    (about,), (finding,), (definition,) = (texts(driver, name) for name in ("#about", "#finding", "#definition"))
    assert about.startswith(
        "CE score of 4 SAE architectures on tiny, blocks.0.hook_resid_post, 64 latents, at L0 30 to 60"
    )
    assert finding == "At L0 ≈ 30.0, of 2 other trained SAEs 0 are better than a, 1 worse, 1 not told apart from it."
    assert "Higher is better. With care: " in definition
    assert "From core: SAEBench's core evaluation" in definition
    select(driver, "base", "b")
    (finding,) = texts(driver, "#finding")
    assert finding == "At L0 ≈ 30.0, of 2 other trained SAEs 1 is better than b (a), 0 worse, 1 not told apart from it."
    title = driver.execute_script("return document.querySelector('#metric option').title")
    assert "is better" in title


@needs_chromium
def test_lines_are_connected_the_front_is_marked_and_controls_are_clipped(driver, page):
    at(driver, page, "#metric=core.ce_loss_score")
    plot = "const p = document.querySelector('#over .plot');"
    names = driver.execute_script(
        plot + "return p.data.filter(t => t.mode === 'lines+markers').map(t => [t.name, t.x.length])"
    )
    assert names == [["a", 2]]
    low, high = driver.execute_script(plot + "return p.layout.yaxis.range")
    assert low > 0.4, "the untrained row at 0.15 does not stretch the axis"
    edge = driver.execute_script(
        plot + "const t = p.data.find(t => t.name === 'beyond the axis'); return [t.y[0], t.marker.symbol[0]]"
    )
    assert low < edge[0] < high
    assert edge[1] == "arrow-down"
    front = driver.execute_script(plot + "return p.data.find(t => t.name === 'Pareto front').x")
    assert front == [30, 60]
    visit(driver, page.as_uri() + "#metric=core.ce_loss_score&query=b")
    assert not driver.execute_script(plot + "return p.data.some(t => t.name === 'Pareto front')"), "b is not on it"
    assert "rings" not in texts(driver, "#over figcaption")[0]
    assert texts(driver, "#names-drawn") == ["2 of 5 architectures are drawn above"]
    visit(driver, page.as_uri() + "#metric=core.ce_loss_score")
    click(driver, "#full")
    low, _ = driver.execute_script(plot + "return p.layout.yaxis.range")
    assert low < 0.15
    assert not driver.execute_script(plot + "return p.data.some(t => t.name === 'beyond the axis')")


@needs_chromium
def test_architectures_of_one_colour_have_other_dashes(driver, tmp_path):
    names = ["refined", "hierarchical", "hierarchical:lower"]
    found = [
        result
        for name in names
        for l0 in (30.0, 60.0)
        for result in over_seeds(f"{name}[k={l0:.0f}]", [0.9, 0.91], l0=l0)
    ]
    (tmp_path / "page.html").write_text(render_report(make_boards(found), []))
    at(driver, tmp_path / "page.html", "#metric=core.ce_loss_score")
    lines = "return document.querySelector('#over .plot').data.filter(t => t.mode === 'lines+markers').map(t => [t.name, t.line.color, t.line.dash])"
    looks = {name: (colour, dash) for name, colour, dash in driver.execute_script(lines)}
    assert set(looks) == set(names)
    assert len({colour for colour, _ in looks.values()}) == 1
    assert looks["refined"][1] == "solid"
    legend = "return [...document.querySelectorAll('#names line')].map(e => e.getAttribute('stroke-dasharray'))"
    dashes = driver.execute_script(legend)
    assert sorted(dashes) == sorted(
        "none" if dash == "solid" else dash.replace("px", "").replace(",", " ") for _, dash in looks.values()
    )
    assert len(set(dashes)) == 3


@needs_chromium
def test_published_curves_stand_behind_ours_in_grey(driver, tmp_path):
    others = [made("other", ce=0.85), made("other[k=60]", ce=0.9, l0=60.0)]
    for result in others:
        result["source"] = "a paper"
    ours = [*over_seeds("a", [0.9, 0.91]), *over_seeds("a[k=60]", [0.95, 0.96], l0=60.0)]
    (tmp_path / "page.html").write_text(render_report(make_boards([*ours, *others]), []))
    at(driver, tmp_path / "page.html", "#metric=core.ce_loss_score&width=")
    script = "return document.querySelector('#over .plot').data.filter(t => t.mode?.includes('markers') && t.name !== 'Pareto front').map(t => [t.name, t.line.color, t.line.width, t.x.length])"
    soft = driver.execute_script("return css('--soft')")
    first, second = driver.execute_script(script)
    assert first == ["other", soft, 1, 2], "it is drawn first, so below"
    assert second[0] == "a"
    assert second[1] != soft
    assert "grey: published by others" in texts(driver, "#over figcaption")[0]


@needs_chromium
def test_differences_told_apart_are_solid(driver, page):
    at(driver, page, "#metric=core.ce_loss_score")
    script = "const p = document.querySelector('#against .plot'); return p.records.map(r => [r.SAE, r.metric, r['told apart'], r.p])"
    apart = {
        name: (told, p) for name, metric, told, p in driver.execute_script(script) if metric == "core.ce_loss_score"
    }
    assert apart["b"][0] == "yes"
    assert apart[HOSTILE] == ("no", None)
    symbols = driver.execute_script(
        "return document.querySelector('#against .plot').data.flatMap(t => t.marker.symbol)"
    )
    assert sum(symbol.endswith("-open") for symbol in symbols) >= 1


@needs_chromium
def test_statistics_of_the_page_are_those_of_the_leaderboard(driver, page):
    at(driver, page)
    cases = [(2.3, 1), (4.1, 2), (0.7, 3), (5.2, 4), (1.1, 7), (2.05, 30)]
    for t, freedom in cases:
        assert driver.execute_script("return twoSided(arguments[0], arguments[1])", t, freedom) == pytest.approx(
            2 * stdtr(freedom, -t), rel=1e-9
        )
        assert driver.execute_script("return quantile(arguments[0])", freedom) == pytest.approx(t_quantile(freedom + 1))
    ps = [0.02, 0.001, 0.04, 0.2, 0.012]
    assert driver.execute_script("return holm(arguments[0])", ps) == holm(ps)


@needs_chromium
def test_the_front_of_the_page_is_that_of_the_leaderboard(driver, published):
    page, boards = published
    at(driver, page, "#width=")
    script = """
    const board = boards.find(b => b.title === arguments[0]), column = board.columns.find(c => c.key === arguments[1]);
    const trained = board.rows.filter(r => r.is_sae && !r.untrained.length && r.l0 && has(r, column.key));
    return [...paretoFront(trained, column)].map(r => r.label + r.d_sae + r.tokens).sort();
    """
    compared = 0
    for board in boards:
        for column in board.shown:
            if column.metric.against_l0:
                front = {f"{r.label}{r.d_sae}{r.training_tokens}" for r in board.rows if board.on_front(r, column)}
                if front:
                    compared += 1
                    assert set(driver.execute_script(script, board_title(board), column.key)) == front
    assert compared > 2


@needs_chromium
def test_panels_and_table_are_downloaded_and_copied(driver, page):
    from selenium.webdriver.common.keys import Keys

    at(driver, page, "#metric=core.ce_loss_score")
    files = [driver.downloads / f"CE-score-over-L0.{ending}" for ending in ("csv", "svg", "png")]
    files.append(driver.downloads / "table.csv")
    buttons = [f"[aria-label^='{kind} of CE score ↑ over L0']" for kind in ("CSV", "SVG", "PNG")]
    for file, button in zip(files, [*buttons, "#csv"], strict=True):
        driver.find_element("css selector", button).send_keys(Keys.ENTER)  # a browser allows one without a gesture
        for _ in range(200):
            if file.exists() and file.stat().st_size:
                break
            time.sleep(0.05)
    panel_rows = list(csv.DictReader(files[0].read_text().splitlines()))
    assert {row["SAE"] for row in panel_rows} >= {"a", "b", "random", HOSTILE}
    assert float(next(row for row in panel_rows if row["SAE"] == "a")["core.ce_loss_score"]) == pytest.approx(0.91)
    assert files[1].read_text().startswith("<svg")
    assert files[2].read_bytes().startswith(b"\x89PNG")
    assert {row["SAE"] for row in csv.DictReader(files[3].read_text().splitlines())} >= {"a", "wide", HOSTILE}
    click(driver, "#latex")
    time.sleep(0.3)
    text = driver.execute_script("return document.getElementById('status').dataset.copied")
    assert "\\begin{tabular}{lrrrr" in text
    columns = len(driver.find_elements("css selector", "#table th"))
    assert f"rows and {columns} columns" in texts(driver, "#status")[0]
    assert "a & 30.0 & 64 & 1,000 & 3 & \\textbf{0.910 $\\pm$ 0.025}" in text
    assert "\\textless{}/script\\textgreater{}" in text


@needs_chromium
def test_head_and_first_column_of_the_table_stay_in_sight(driver, page):
    at(driver, page)
    style = "const s = getComputedStyle(document.querySelector(arguments[0])); return [s.position, s.top, s.left]"
    assert driver.execute_script(style, "#table thead th:nth-child(2)")[:2] == ["sticky", "0px"]
    assert driver.execute_script(style, "#table tbody td")[::2] == ["sticky", "0px"]


@needs_chromium
def test_the_keyboard_reaches_everything(driver, page):
    from selenium.webdriver.common.keys import Keys

    at(driver, page)
    driver.execute_script("document.activeElement.blur()")
    wanted = "return [...document.querySelectorAll('select, button, input, summary, .scroll')].filter(e => e.checkVisibility()).length"
    for _ in range(driver.execute_script(wanted) + 2):
        driver.switch_to.active_element.send_keys(Keys.TAB)
        driver.execute_script("document.activeElement.dataset.reached = 'yes'")
    script = "return [...document.querySelectorAll('select, button, input, summary, .scroll')].filter(e => e.checkVisibility() && !e.dataset.reached).map(e => e.outerHTML.slice(0, 80))"
    assert driver.execute_script(script) == []
    unlabelled = "return [...document.querySelectorAll('select, button, input')].filter(e => !(e.textContent.trim() || e.labels?.length || e.ariaLabel)).length"
    assert driver.execute_script(unlabelled) == 0


@needs_chromium
def test_a_row_opens_by_keyboard_and_says_where_it_comes_from(driver, page):
    from selenium.webdriver.common.keys import Keys

    at(driver, page)
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

    at(driver, page)
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
    at(driver, page)
    colour = "return getComputedStyle(document.body).backgroundColor"
    before = driver.execute_script(colour)
    click(driver, "#theme")
    assert driver.execute_script(colour) != before
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": 360, "height": 740, "deviceScaleFactor": 1, "mobile": True}
    )
    try:
        at(driver, page, "#open=reconstruction&open=probing")
        assert driver.execute_script("return document.documentElement.scrollWidth") <= 360
        widths = driver.execute_script(
            "return [...document.querySelectorAll('figure')].map(f => f.getBoundingClientRect().width)"
        )
        assert max(widths) <= 360
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_chromium
@needs_axe
def test_axe_finds_nothing(driver, page):
    at(driver, page, "".join(f"&open={question}" for question in (*QUESTIONS, "training curves")).replace("&", "#", 1))
    click(driver, "#filters")
    click(driver, "#table td:first-child button")
    looks = "const s = getComputedStyle(document.documentElement); return ['--text', '--soft'].map(n => s.getPropertyValue(n).trim())"
    inks = [f"rgb({int(c[1:3], 16)}, {int(c[3:5], 16)}, {int(c[5:], 16)})" for c in driver.execute_script(looks)]
    fills = "return [...new Set([...document.querySelectorAll('.plot text')].map(e => getComputedStyle(e).fill))]"
    assert set(driver.execute_script(fills)) == set(inks), "axe-core leaves text of plots aside"
    check_accessible(driver)


def test_the_command(tmp_path, capsys):
    (tmp_path / "r.json").write_text(json.dumps(made("a")))
    assert main(["report", "--results", str(tmp_path), "--output", str(tmp_path / "page.html")]) == 0
    assert "1 rows on 1 boards" in capsys.readouterr().out
    assert (tmp_path / "page.html").stat().st_size < 5 * 2**20


def test_the_page_holds_no_address_but_those_of_its_libraries():
    text = "".join(path.read_text() for kind in ("*.html", "*.css", "*.js") for path in TEMPLATES.glob(kind))
    assert "http" not in text.replace("http://www.w3.org/2000/svg", "")  # a name, not an address


def test_the_page_is_opened_in_the_browser_when_asked_for(tmp_path, monkeypatch):
    (tmp_path / "r.json").write_text(json.dumps(made("a")))
    asked = []
    monkeypatch.setattr("webbrowser.open", lambda url: asked.append(url) or True)
    words = ["report", "--results", str(tmp_path), "--output", str(tmp_path / "page.html")]
    assert main(words) == 0
    assert asked == []
    assert main([*words, "--open"]) == 0
    assert asked == [(tmp_path / "page.html").as_uri()]


def test_every_evaluation_of_ours_answers_a_question():
    answered = [name for names in QUESTIONS.values() for name in names]
    assert sorted(answered) == sorted(set(answered))
    assert set(answered) == {
        path.stem
        for path in Path(eval_runners.__file__).parent.glob("*.py")
        if path.stem not in ("__init__", "__main__", *GROUPS)
    }
