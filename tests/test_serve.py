"""The server: the report, reloaded when results arrive, further pages, and nothing else on this machine."""

from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import time
from argparse import ArgumentParser, Namespace

import pytest
from aiohttp.test_utils import TestClient, TestServer
from conftest import check_accessible, needs_axe, needs_chromium
from test_leaderboard import made
from yarl import URL

from eval_runners.commands import leaderboard, serve
from eval_runners.commands.serve import COOKIE, make_app, version_of
from eval_runners.leaderboard.select import add_filters, add_result_folders, find_boards
from sae_variants.common.errors import UsageError

TOKEN = "t" * 22


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.json").write_text(json.dumps(made("a", 0)))
    (tmp_path / "pages").mkdir()
    (tmp_path / "pages" / "case.html").write_text("<p>a case study</p>")
    (tmp_path / "secret.txt").write_text("secret")
    (tmp_path / "pages" / "link.txt").symlink_to(tmp_path / "secret.txt")
    return tmp_path


def arguments(folder):
    parser = ArgumentParser()
    add_result_folders(parser)
    add_filters(parser)
    return parser.parse_args(["--results", str(folder / "results")], Namespace(trained=str(folder)))


def ask(folder, paths, token="", given="", cookies=None, **options):
    """Status and text of each path, in order."""

    async def run():
        app = make_app(arguments(folder), folder / "pages", token, {})
        async with TestClient(TestServer(app), cookies=cookies) as client:
            found = []
            for path in paths:
                path = path() if callable(path) else path
                url = URL(path + (f"?token={given}" if given else ""), encoded=True)
                answer = await client.get(url, **options)
                found.append((answer.status, await answer.text()))
            return found

    return asyncio.run(run())


def test_it_shows_the_report_and_the_pages(folder):
    (folder / "pages" / "more").mkdir()
    (folder / "pages" / "more" / "<b>&#.html").write_text("<p>another</p>")
    more = "/pages/more/%3Cb%3E%26%23.html"
    (report, listing, case, other) = ask(folder, ["/", "/pages", "/pages/case.html", more])
    assert report[0] == 200
    assert version_of([folder / "results" / "a.json"]) in report[1]
    assert "location.reload()" in report[1]
    assert '<a href="/pages/case.html">case.html</a>' in listing[1]
    assert f'<a href="{more}">more/&lt;b&gt;&amp;#.html</a>' in listing[1]
    assert other[1].startswith("<p>another</p>")
    assert "link.txt" not in listing[1]
    assert case[1].startswith("<p>a case study</p>")
    assert all("location.reload()" in text for _, text in (listing, case, other))


def test_pages_and_their_list_are_loaded_again_when_they_change(folder):
    study, case = folder / "pages" / "study", "/pages/study/index.html"
    (study / "latents").mkdir(parents=True)
    (study / "index.html").write_text("<body>here</body>")
    (study / "latents" / "3.js").write_text("receive({})")
    addresses = ["/", "/pages", "/pages/case.html", case]

    def versions():
        return [version for _, version in ask(folder, [f"/version{address}" for address in addresses])]

    before = versions()
    texts = [text for _, text in ask(folder, addresses)]
    assert all(version in text for version, text in zip(before, texts, strict=True))
    assert "here<script>" in texts[3]
    (study / "latents" / "4.js").write_text("receive({})")
    assert [a == b for a, b in zip(before, versions(), strict=True)] == [True, True, True, False]
    (folder / "pages" / "case.html").write_text("<p>changed</p>")
    assert [a == b for a, b in zip(before, versions(), strict=True)] == [True, False, False, False]


def test_only_pages_and_the_latents_of_case_studies_are_served(folder):
    (folder / "pages" / "latents").mkdir()
    (folder / "pages" / "other").mkdir()
    hidden = ["human_study.key.json", "human_study.csv", "script.js", "latents/3.js", "other/3.js", "case.html.partial"]
    for name in hidden:
        (folder / "pages" / name).write_text("the answers")
    (folder / "pages" / "away.html").symlink_to(folder / "secret.txt")
    found = ask(folder, [f"/pages/{name}" for name in (*hidden, "away.html", "latents", "missing.html")])
    assert {status for status, _ in found} == {404}
    assert "away" not in ask(folder, ["/pages"])[0][1]
    (folder / "pages" / "index.html").write_text("")
    assert ask(folder, ["/pages/latents/3.js"]) == [(200, "the answers")]


@pytest.mark.parametrize(
    ("host", "status"),
    [
        ("127.0.0.1:8000", 200), ("localhost", 200), ("[::1]:80", 200), ("evil.example:8000", 403), ("[::1", 403), ("", 403),
        ("127.0.0.1.evil.example", 403),
    ],
)  # fmt: skip
def test_without_a_token_only_names_of_this_machine_are_answered(folder, host, status):
    assert ask(folder, ["/version/"], headers={"Host": host})[0][0] == status
    assert ask(folder, ["/version/"], token=TOKEN, cookies={COOKIE: TOKEN}, headers={"Host": host})[0][0] == 200


def test_the_token_does_not_stay_in_the_address(folder):
    async def run():
        async with TestClient(TestServer(make_app(arguments(folder), folder / "pages", TOKEN, {}))) as client:
            answer = await client.get(f"/pages/case.html?token={TOKEN}", allow_redirects=False)
            return answer.status, answer.headers["Location"], answer.headers["Set-Cookie"]

    status, address, cookie = asyncio.run(run())
    assert (status, address) == (302, "/pages/case.html")
    assert f"{COOKIE}={TOKEN}" in cookie
    assert "HttpOnly" in cookie


def test_a_new_result_is_another_version_and_is_on_the_next_page(folder):
    def add():
        (folder / "results" / "b.json").write_text(json.dumps(made("b", 0)))
        return "/version/"

    first, page, after, second = ask(folder, ["/version/", "/", add, "/"])
    assert first[1] != after[1]
    assert first[1] in page[1]
    assert after[1] in second[1]


def test_results_that_are_gone_are_one_line_and_no_traceback(folder):
    (folder / "results" / "a.json").unlink()
    assert ask(folder, ["/"]) == [
        (503, f"there are no results in {folder / 'results'}: give another --results FOLDER\n")
    ]


@pytest.mark.parametrize(
    "path",
    [
        "/pages/../secret.txt", "/pages/%2e%2e/secret.txt", "/pages/..%2fsecret.txt", "/pages//etc/passwd", "/secret.txt",
        "/pages/link.txt", "/pages/%2fetc%2fpasswd", "/results/a.json",
    ],
)  # fmt: skip
def test_nothing_outside_the_folder_of_pages_is_served(folder, path):
    ((status, text),) = ask(folder, [path])
    assert status in (403, 404)
    assert "secret" not in text
    assert "root:" not in text


@pytest.mark.parametrize("path", ["/", "/version/", "/pages/case.html"])
def test_with_a_token_only_who_has_it_sees_anything(folder, path):
    assert ask(folder, [path], token=TOKEN)[0][0] == 401
    assert ask(folder, [path], token=TOKEN, given="wrong")[0][0] == 401
    assert ask(folder, [path], token=TOKEN, given=TOKEN)[0][0] == 200
    assert ask(folder, [path], token=TOKEN, cookies={COOKIE: TOKEN})[0][0] == 200


def test_results_are_read_once_at_the_start(folder, monkeypatch):
    reads, served = [], []
    monkeypatch.setattr(serve, "find_boards", lambda args: reads.append(1) or find_boards(args))

    async def stand_in(args, pages, token, rendered):
        async with TestClient(TestServer(make_app(args, pages, token, rendered))) as client:
            served.append(await (await client.get("/")).text())

    monkeypatch.setattr(serve, "_serve", stand_in)
    assert serve.main(["--results", str(folder / "results"), "--trained", str(folder)]) == 0
    assert "location.reload()" in served[0]
    assert reads == [1]


def test_another_host_than_loopback_has_a_token():
    assert all(map(serve._is_loopback, ("127.0.0.1", "::1", "localhost", "127.0.0.9")))
    assert not any(map(serve._is_loopback, ("0.0.0.0", "192.168.0.7", "example.org", "::")))


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--pages", "nowhere"], "--pages nowhere is not a folder"),
        (["--port", "70000"], "--port must be at most 65535, not 70000"),
        (["--results", "nowhere"], "nowhere"),
    ],
)
def test_what_cannot_work_is_refused(folder, options, says):
    with pytest.raises(UsageError, match=says):
        serve.main(["--results", str(folder / "results"), *options][0 if options[0] != "--results" else 2 :])


def test_a_port_that_is_taken_is_one_line(folder):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        with pytest.raises(UsageError, match=r"cannot listen at 127\.0\.0\.1, port \d+ .*: give another --port"):
            serve.main(["--results", str(folder / "results"), "--port", str(taken.getsockname()[1])])


def test_the_command_prints_its_address_and_ends_with_ctrl_c(folder):
    words = ["serve", "--results", str(folder / "results"), "--pages", str(folder / "pages"), "--port", "0"]
    with subprocess.Popen(
        [sys.executable, "-m", "eval_runners", *words],
        stdout=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # where tests run in the background
    ) as server:
        try:
            assert server.stdout.readline().startswith("http://127.0.0.1:")
            server.send_signal(signal.SIGINT)
            assert server.wait(timeout=30) == 0
        finally:
            server.kill()


@needs_chromium
@needs_axe
@pytest.mark.parametrize("path", ["", "pages"])
def test_axe_finds_nothing(folder, driver, path):
    words = ["serve", "--results", str(folder / "results"), "--pages", str(folder / "pages"), "--port", "0"]
    with subprocess.Popen([sys.executable, "-m", "eval_runners", *words], stdout=subprocess.PIPE, text=True) as server:
        address = server.stdout.readline().partition("  ")[0]

        try:
            driver.get(address + path)
            while not path and driver.execute_script("return document.body.dataset.drawn") != "yes":
                time.sleep(0.05)
            check_accessible(driver)
        finally:
            server.terminate()


def test_the_leaderboard_writes_the_page_of_the_report(folder, tmp_path):
    assert leaderboard.main(["--results", str(folder / "results"), "--html", str(tmp_path / "page.html")]) == 0
    assert "</html>" in (tmp_path / "page.html").read_text()
