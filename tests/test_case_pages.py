"""Pages of case studies in headless Chromium: one file, a folder, and two SAEs side by side."""

from __future__ import annotations

import copy
import json

import pytest
import torch
from conftest import (
    TINY,
    check_accessible,
    fetched,
    identity,
    linear_sae,
    needs_axe,
    needs_chromium,
    opened,
)
from test_hierarchy import tree

from eval_runners.__main__ import main
from eval_runners.measures.latent_choice import LatentChoice
from eval_runners.measures.latent_sheet import describe_latents
from eval_runners.measures.matched_latents import describe_matched_latents
from eval_runners.views.case_pages import case_page, check_case_folder, write_case_folder
from sae_variants.common.errors import UsageError

HOSTILE = "</script><script>document.body.dataset.broken='yes'</script><img src=x onerror=document.body.dataset.broken='yes'><b>bold</b>"  # fmt: skip


def named(data):
    data["about"]["sae"] = "first"
    if "other" in data["about"]:
        data["about"]["other"]["sae"] = "second"
    return data


@pytest.fixture(scope="module")
def plain(target, model):
    """Six latents of an SAE, and one that never fires."""
    sae = identity(target)
    sae.b_enc.data[9] = -1e6
    return named(describe_latents(sae, target, model, LatentChoice.parse("3,4,5,6,7,8,9"), 24, 32, seed=0))


@pytest.fixture(scope="module")
def two_levels(target, model):
    return named(describe_latents(tree(target), target, model, LatentChoice.parse("0,1,2"), 24, 32, seed=0))


@pytest.fixture(scope="module")
def matched(target, model):
    sae = identity(target)
    order = torch.randperm(64, generator=torch.Generator().manual_seed(0))
    other = linear_sae(target, sae.W_enc.data[:, order], sae.W_dec.data[order])
    sae.b_enc.data[9] = -1e6
    return named(describe_matched_latents((sae, other), target, model, LatentChoice.parse("3,4,9"), 24, 32, seed=0))


def shown_page(driver, data, tmp_path):
    file = tmp_path / "page.html"
    file.write_text(case_page(data))
    return opened(driver, file)


def press(driver, *keys):
    from selenium.webdriver import ActionChains, Keys

    for key in keys:
        ActionChains(driver).send_keys(getattr(Keys, key) if key.isupper() and len(key) > 1 else key).perform()


def run(driver, script):
    return driver.execute_script(f"return {script}")


def listed(driver):
    return run(driver, "[...document.querySelectorAll('#list li')].map(e => +e.id.replace('option-', ''))")


def chosen(driver):
    return run(driver, "+document.querySelector('#list [aria-selected=true]').id.replace('option-', '')")


def heads(driver):
    return run(driver, "[...document.querySelectorAll('#latent h3')].map(e => e.textContent)")


def wait_for(driver, script, wanted):
    from selenium.webdriver.support.ui import WebDriverWait

    WebDriverWait(driver, 10).until(lambda _: run(driver, script) == wanted)


def search(driver, text):
    driver.execute_script("const s = document.getElementById('search'); s.value = arguments[0]; s.oninput()", text)


def check_quiet(driver):
    """Nothing was fetched, and the console has no warning."""
    log = [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert log == []
    assert fetched(driver) == []


@needs_chromium
@pytest.mark.parametrize("width", [1300, 700, 390])
def test_contexts_are_cut_at_words(driver, plain, tmp_path, width):
    words = [" some", " wor", "ds", " of", " a", " long", "er", " text", ",", " un", "cut"] * 6
    page = json.loads(json.dumps(plain))
    for excerpt in page["latents"][0]["top"]:
        excerpt["at"], excerpt["tokens"], excerpt["acts"] = 30, words, [0.0] * 30 + [1.0] + [0.0] * 35
    driver.set_window_size(width, 900)
    try:
        shown_page(driver, page, tmp_path)
        sides = run(
            driver,
            "[...document.querySelectorAll('.contexts')][0].querySelectorAll('.before, .after').length && "
            "[...[...document.querySelectorAll('.contexts')][0].querySelectorAll('.before, .after')].map(side => ["
            "side.className, side.scrollWidth <= side.clientWidth + 1, [...side.children].filter("
            "part => !part.classList.contains('out')).map(part => part.textContent).join('')])",
        )
    finally:
        driver.set_window_size(1300, 900)
    assert any("short" in name for name, _, _ in sides)
    left, right = "".join(words[:30]), "".join(words[30:])
    for name, fits, text in sides:
        assert fits
        if "short" in name:
            whole, rest = (
                (left, left[: -len(text)] if text else left) if "before" in name else (right, right[len(text) :])
            )
            assert whole.endswith(text) if "before" in name else whole.startswith(text)
            assert (
                (text[:1] in ("", " ", ",") or not rest[-1:].isalnum()) if "before" in name else not rest[0].isalnum()
            )


@needs_chromium
def test_every_panel_of_a_latent_is_drawn(driver, plain, two_levels, tmp_path):
    shown_page(driver, plain, tmp_path)
    found = heads(driver)
    for start in ("Tokens", "Logits", "Where", "Contexts with", "Nearest", "Correlated", "Fire together", "Effect"):
        assert any(head.startswith(start) for head in found), (start, found)
    assert run(driver, "document.querySelectorAll('#latent .patterns .chips li').length") > 0
    assert run(driver, "[...document.querySelectorAll('#latent svg')].map(e => e.querySelectorAll('rect').length)") == [
        len(plain["latents"][0]["histogram"]["counts"]),
        len(plain["latents"][0]["positions"]),
    ]
    tallest = run(
        driver, "Math.max(...[...document.querySelectorAll('#latent rect')].map(e => +e.getAttribute('height')))"
    )
    assert tallest == 44
    assert run(driver, "[...document.querySelectorAll('#latent ul.bars')].every(e => e.children.length)")
    first = plain["latents"][0]["top"][0]
    line = run(driver, "document.querySelector('.context .words').textContent")
    assert "".join(first["tokens"]) in line
    assert run(driver, "document.querySelector('.context .most').textContent") == first["tokens"][first["at"]]
    search(driver, "9")
    assert chosen(driver) == 9
    assert "does not fire on this text" in run(driver, "document.getElementById('latent').textContent")
    text = run(driver, "document.getElementById('about').textContent")
    assert "Listed first" not in text, "they were chosen by number"
    assert not any(head.startswith("Children") for head in found), "it has none"
    shown_page(driver, two_levels, tmp_path)
    assert any(head.startswith("Children: 2") for head in heads(driver))
    assert run(driver, "document.querySelectorAll('.tree details').length") == 2
    check_quiet(driver)


@needs_chromium
def test_the_darkest_token_has_the_largest_activation(driver, plain, tmp_path):
    shown_page(driver, plain, tmp_path)
    shades = run(driver, "[...document.querySelectorAll('#latent .token')].map(e => [+e.dataset.act, +e.style.getPropertyValue('--a')])")  # fmt: skip
    firing = sorted(shade for shade in shades if shade[0] > 0)
    assert [shade for _, shade in firing] == sorted(shade for _, shade in firing)
    assert firing[-1][1] == 1
    assert {shade for act, shade in shades if act == 0} == {0}


@needs_chromium
def test_keys_alone_reach_everything(driver, plain, tmp_path):
    shown_page(driver, plain, tmp_path)
    order = listed(driver)
    press(driver, "j", "j", "k")
    assert chosen(driver) == order[1]
    assert run(driver, "location.hash") == f"#latent-{order[1]}"
    press(driver, "/")
    assert run(driver, "document.activeElement.id") == "search"
    press(driver, "ENTER")
    assert run(driver, "document.activeElement.id") == "list"
    press(driver, "ARROW_DOWN")
    assert chosen(driver) == order[2]
    press(driver, "END")
    assert chosen(driver) == order[-1]
    press(driver, "HOME", "ENTER")
    assert (chosen(driver), run(driver, "document.activeElement.id")) == (order[0], "latent")
    wanted = run(driver, "document.querySelectorAll('#latent .context, #latent a, #latent summary').length")
    reached = set()
    for _ in range(wanted):
        press(driver, "TAB")
        reached.add(run(driver, "[...document.querySelectorAll('#latent .context, #latent a, #latent summary')].indexOf(document.activeElement)"))  # fmt: skip
    assert reached == set(range(wanted))
    driver.execute_script("document.querySelector('.context').focus()")
    first = plain["latents"][0]["top"][0]
    press(driver, "ENTER")
    assert run(driver, "document.activeElement.getAttribute('aria-expanded')") == "true"
    press(driver, "ARROW_RIGHT")
    tip = run(driver, "document.getElementById('tip').textContent")
    assert tip.startswith(json.dumps(first["tokens"][first["at"]], ensure_ascii=False))
    assert float(tip.split()[-1]) == pytest.approx(first["acts"][first["at"]], rel=0.01)
    press(driver, "ARROW_LEFT")
    before = first["tokens"][first["at"] - 1]
    assert json.dumps(before, ensure_ascii=False) in run(driver, "document.getElementById('tip').textContent")
    press(driver, "ESCAPE")
    assert run(driver, "document.getElementById('tip').hidden")
    colour = "getComputedStyle(document.body).backgroundColor"
    light = run(driver, colour)
    press(driver, "t")
    assert run(driver, colour) != light
    check_quiet(driver)


@needs_chromium
def test_the_pointer_shows_a_tokens_value(driver, plain, tmp_path):
    from selenium.webdriver import ActionChains

    shown_page(driver, plain, tmp_path)
    token = driver.find_element("css selector", ".context .most")
    ActionChains(driver).move_to_element(token).perform()
    value = float(run(driver, "document.getElementById('tip').textContent").split()[-1])
    assert value == pytest.approx(plain["latents"][0]["top"][0]["acts"][plain["latents"][0]["top"][0]["at"]], rel=0.01)
    token.click()
    assert run(driver, "document.querySelector('.context').getAttribute('aria-expanded')") == "true"


@needs_chromium
def test_the_search_reads_weaker_contexts_and_children(driver, two_levels, tmp_path):
    data = copy.deepcopy(two_levels)
    upper, lower = data["latents"][0], data["latents"][1]
    upper["children"]["rows"][0]["top"][0]["tokens"][0] = "Zanzibar"
    lower["lower"][0]["excerpts"][0]["tokens"][0] = "Timbuktu"
    shown_page(driver, data, tmp_path)
    search(driver, "zanzibar")
    assert (listed(driver), chosen(driver)) == ([upper["latent"]], upper["latent"])
    assert run(driver, "document.querySelector('#list .where').textContent") == "in a child"
    assert run(driver, "document.querySelector('.tree details').open")
    assert run(driver, "document.querySelector('.tree .hit').textContent").find("Zanzibar") >= 0
    search(driver, "TIMBUKTU")
    assert listed(driver) == [lower["latent"]]
    assert run(driver, "document.querySelector('#list .where').textContent") == "in a weaker context"
    search(driver, "no such text")
    assert listed(driver) == []
    assert run(driver, "document.getElementById('count').textContent") == "0 of 3 latents"
    search(driver, "")
    assert len(listed(driver)) == 3
    check_quiet(driver)


@needs_chromium
def test_characters_that_show_nothing_are_written_out(driver, plain, tmp_path):
    data = copy.deepcopy(plain)
    row = data["latents"][0]
    row["raised"][0][0], row["raised"][1][0] = "\x00\u202e", "  "
    shown_page(driver, data, tmp_path)
    texts = run(driver, "[...document.querySelectorAll('.up li > :first-child')].map(e => e.textContent)")
    assert texts[:2] == [r"\u0000\u202e", "␣␣"]


@needs_chromium
def test_the_list_is_ordered(driver, plain, tmp_path):
    shown_page(driver, plain, tmp_path)
    by_density = sorted(plain["latents"], key=lambda row: -row["density"])
    driver.execute_script(
        "const o = document.getElementById('order'); o.value = [...o.options].findIndex(e => e.text.startsWith('most frequent')); o.onchange()"
    )
    assert listed(driver) == [row["latent"] for row in by_density]


@needs_chromium
@pytest.mark.parametrize("size", [(1280, 800), (390, 844)])
def test_the_page_fits_a_desk_and_a_phone(driver, matched, two_levels, size, tmp_path):
    metrics = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    try:
        for data in (matched, two_levels):
            shown_page(driver, data, tmp_path)
            driver.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true })")
            assert run(driver, "document.documentElement.scrollWidth <= innerWidth")
            boxes = (
                "[document.querySelector('nav'), document.getElementById('latent')].map(e => e.getBoundingClientRect())"
            )
            side_by_side = run(driver, f"(([list, latent]) => list.right <= latent.left + 1)({boxes})")
            assert side_by_side == (size[0] > 820)
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


@needs_chromium
def test_matched_latents_stand_side_by_side(driver, matched, tmp_path):
    shown_page(driver, matched, tmp_path)
    row = matched["latents"][0]
    assert run(driver, "document.title") == "Latents of first beside those of second"
    assert "cosine 1.00, correlation of activations 1" in run(driver, "document.querySelector('.matched').textContent")
    names = run(driver, "[...document.querySelectorAll('#latent article')].map(e => e.getAttribute('aria-label'))")
    assert names == [f"Latent {row['latent']} of first", f"Latent {row['match']['row']['latent']} of second"]
    assert run(driver, "document.querySelectorAll('#match a').length") == 0, "its numbers are not those of the list"
    search(driver, "9")
    text = run(driver, "document.getElementById('latent').textContent")
    assert "No latent is left to match it" in text
    nearest = matched["latents"][2]["nearest_other"]
    assert f"latent {nearest[0]} {nearest[2]}, with cosine 1.00" in text
    check_quiet(driver)


@needs_chromium
def test_a_folder_is_read_on_demand_without_a_server(driver, plain, tmp_path):
    data = copy.deepcopy(plain)
    data["latents"][3]["lower"][0]["excerpts"][0]["tokens"][0] = "Timbuktu"
    folder = check_case_folder(tmp_path / "case", "--folder")
    size = write_case_folder(data, folder, "--folder")
    assert size == sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    opened(driver, folder / "index.html")
    loaded = "[...rows.values()].filter(r => !r.file).length"
    wait_for(driver, "document.querySelectorAll('#latent article').length", 1)
    assert run(driver, loaded) == 1
    press(driver, "j")
    wait_for(driver, loaded, 2)
    assert run(driver, "document.querySelectorAll('.context').length") > 8
    search(driver, "timbuktu")
    wait_for(driver, "document.getElementById('count').textContent", "1 of 7 latents")
    assert chosen(driver) == data["latents"][3]["latent"]
    assert run(driver, loaded) == 7
    check_quiet(driver)
    (folder / "latents" / "4.js").unlink()
    driver.get("about:blank")
    opened(driver, folder / "index.html")
    press(driver, "j")
    wait_for(driver, "document.getElementById('broken').textContent.startsWith('latents/4.js is missing')", True)
    driver.get("about:blank")
    driver.get_log("browser")  # the browser's own line on that file


def test_a_folder_holds_one_case_study_only(plain, tmp_path):
    folder = tmp_path / "case"
    write_case_folder(plain, check_case_folder(folder, "--folder"), "--folder")
    fewer = {**plain, "latents": plain["latents"][:2]}
    write_case_folder(fewer, check_case_folder(folder, "--folder"), "--folder")
    assert sorted(file.name for file in (folder / "latents").iterdir()) == ["3.js", "4.js"]
    (folder / "latents" / "mine.js").write_text("")
    with pytest.raises(UsageError, match=r"other files, such as latents/mine\.js: give another --folder"):
        check_case_folder(folder, "--folder")
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match="other files, such as case"):
        check_case_folder(tmp_path, "--folder")


@needs_chromium
@needs_axe
@pytest.mark.parametrize("kind", ["plain", "matched", "two_levels"])
def test_axe_finds_nothing(driver, kind, tmp_path, request):
    data = request.getfixturevalue(kind)
    if kind == "plain":
        write_case_folder(data, check_case_folder(tmp_path / "case", "--folder"), "--folder")
        opened(driver, tmp_path / "case" / "index.html")
        wait_for(driver, "document.querySelectorAll('#latent article').length > 0", True)
    else:
        shown_page(driver, data, tmp_path)
    driver.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true })")
    driver.execute_script("openLine(document.querySelector('.context')); showTip(document.querySelector('.token'))")
    check_accessible(driver)


def all_hostile(value):
    """Data whose every text is markup."""
    if isinstance(value, dict):
        return {name: all_hostile(part) for name, part in value.items()}
    if isinstance(value, list | tuple):
        return [all_hostile(part) for part in value]
    return HOSTILE if isinstance(value, str) else value


@needs_chromium
def test_text_that_is_markup_is_shown_as_text(driver, matched, two_levels, tmp_path):
    for number, data in enumerate((all_hostile(matched), all_hostile(two_levels))):
        shown_page(driver, data, tmp_path)
        check_harmless(driver)
        folder = check_case_folder(tmp_path / f"case{number}", "--folder")
        write_case_folder(data, folder, "--folder")
        opened(driver, folder / "index.html")
        wait_for(driver, "document.querySelectorAll('#latent article').length > 0", True)
        check_harmless(driver)
    check_quiet(driver)


def check_harmless(driver):
    search(driver, "onerror")
    driver.execute_script("document.querySelectorAll('details').forEach(e => { e.open = true })")
    driver.execute_script("showTip(document.querySelector('.token'))")
    assert run(driver, "document.getElementById('latent').textContent").count(HOSTILE) > 20
    assert run(driver, "document.title").count(HOSTILE) >= 1
    assert run(driver, "document.body.dataset.broken") is None
    assert run(driver, "document.querySelectorAll('img, b').length") == 0


@pytest.fixture(scope="module")
def options(target, model_folder, text_file, trained):
    fields = [f"--train.{name.replace('_', '-')}={value}" for name, value in TINY.items()]
    return [
        "case-study", "--model", str(model_folder), "--dataset", str(text_file), "--hook-name", target.hook_name,
        "--trained", str(trained), "--n-contexts", "24", "--context-size", "32", *fields,
    ]  # fmt: skip


def test_the_command_writes_a_page_a_pair_and_a_folder(options, tmp_path, capsys):
    page, folder = tmp_path / "case.html", tmp_path / "case"
    assert main([*options, "--sae", "temporal", "--latents", "best:3", "--output", str(page)]) == 0
    assert f"{page}: 3 latents" in capsys.readouterr().out
    pair = ["--sae", "stock:batchtopk", "--sae", "temporal", "--latents", "random:3"]
    assert main([*options, *pair, "--folder", str(folder)]) == 0
    assert f"{folder / 'index.html'}: 3 latents in files of their own" in capsys.readouterr().out
    assert len(list((folder / "latents").iterdir())) == 3
    assert "stock:batchtopk" in (folder / "index.html").read_text()


def test_saes_that_cannot_be_paired_are_refused_before_any_work(options, tmp_path):
    with pytest.raises(UsageError, match="given once, or twice"):
        main([*options, "--sae", "temporal", "--sae", "topk", "--sae", "stock:batchtopk"])
    with pytest.raises(UsageError, match="--sae temporal is given twice"):
        main([*options, "--sae", "temporal", "--sae", "temporal"])
    (tmp_path / "notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"other files, such as notes\.txt: give another --folder"):
        main([*options, "--sae", "temporal", "--folder", str(tmp_path)])
