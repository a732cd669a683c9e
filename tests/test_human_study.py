"""The intruder task: statistics by hand, raters of known skill, and the page in headless Chromium."""

from __future__ import annotations

import dataclasses
import json
import random
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from conftest import TINY, check_accessible, fetched, needs_axe, needs_chromium, opened
from scipy.stats import binomtest

from eval_runners.__main__ import main
from eval_runners.commands.human_study.judge import parse_choice
from eval_runners.contract.registry import load_evaluator
from eval_runners.data import endpoint as endpoint_module
from eval_runners.data.endpoint import KEY_VARIABLE
from eval_runners.measures.firing import Firing
from eval_runners.measures.intruder_questions import sample_questions
from eval_runners.measures.intrusion import (
    Item,
    Share,
    intrusion_scores,
    kappa_of,
    newcombe_interval,
    share_of,
    wilson_interval,
)
from eval_runners.views.page import render_page
from sae_variants.common.errors import UsageError

HOSTILE = "</script><script>document.body.dataset.broken='yes'</script><b>bold</b>"


def test_wilson_and_newcombe_intervals_equal_published_ones():
    def share(right: int, total: int) -> Share:
        return share_of([[n < right] for n in range(total)])

    for right, total in ((8, 10), (0, 7), (5, 5), (61, 90)):
        by_scipy = binomtest(right, total).proportion_ci(0.95, method="wilson")
        assert wilson_interval(right / total, total) == pytest.approx((by_scipy.low, by_scipy.high))
        assert share(right, total).interval == pytest.approx((by_scipy.low, by_scipy.high))
    assert newcombe_interval(share(56, 70), share(48, 80)) == pytest.approx(
        (0.0524, 0.3339), abs=1e-4
    )  # Newcombe 1998, (a)
    assert newcombe_interval(share(0, 10), share(0, 10)) == pytest.approx((-0.2775, 0.2775), abs=1e-4)


def test_raters_of_an_item_count_by_the_design_effect():
    assert share_of([[True] * 5, [False] * 5] * 5).effective == pytest.approx(10)  # all agree: as many as items
    lot = random.Random(0)
    independent = share_of([[lot.random() < 0.5 for _ in range(5)] for _ in range(400)])
    assert 1600 < independent.effective <= 2000
    assert share_of([[True] * 3] * 4).effective == 4
    assert share_of([[True], [False]]).effective == 2
    assert share_of([[True, True, False]]).effective == 1
    assert (share_of([]).answers, share_of([]).share) == (0, 0)


def test_fleiss_kappa_equals_the_published_value():
    table = [[0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1], [7, 7, 0, 0, 0],
             [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7]]  # fmt: skip
    choices = [[choice for choice, n in enumerate(row) for _ in range(n)] for row in table]
    assert kappa_of(choices) == pytest.approx(0.210, abs=5e-4)
    assert kappa_of([[1, 1], [2, 2]]) == 1
    assert kappa_of([[1], [2]]) is None
    assert kappa_of([[1, 1], [1, 1]]) is None
    assert kappa_of([]) is None


def study_of(items: int, controls: int, saes: int = 1) -> dict[str, Item]:
    lot = random.Random(0)
    items_of_study = [Item(sae, n < items, lot.randrange(5)) for sae in range(saes) for n in range(items + controls)]
    return {str(at): item for at, item in enumerate(items_of_study)}


def rater(items: dict[str, Item], skill: dict[int, float], lot: random.Random) -> dict[str, int]:
    """Answers of a rater who recognizes the intruder of an SAE's items with that probability, else picks another excerpt."""
    answers = {}
    for name, item in items.items():
        sees = lot.random() < (skill[item.sae] if item.has_latent else 0.2)
        answers[name] = item.intruder if sees else lot.choice([c for c in range(5) if c != item.intruder])
    return answers


def test_intervals_cover_the_skill_of_raters_in_95_of_100_simulations():
    items, covered, differences = study_of(30, 20), [], []
    for simulation in range(600):
        lot = random.Random(simulation)
        found = intrusion_scores(items, [rater(items, {0: 0.7}, lot) for _ in range(2)], 0, None)
        covered.append(found["accuracy_low"] <= 0.7 <= found["accuracy_high"])
        differences.append(found["difference_low"] <= 0.5 <= found["difference_high"])
    assert 0.93 <= sum(covered) / 600 <= 0.985
    assert 0.93 <= sum(differences) / 600 <= 0.99


@pytest.mark.parametrize(("raters", "count"), [(1, 12), (3, 12), (10, 12), (4, 40)])
def test_intervals_cover_the_mean_of_items_that_are_not_equally_hard(raters, count):
    covered = 0
    for simulation in range(400):
        lot = random.Random(simulation)
        easy = [lot.random() for _ in range(count)]  # of items drawn from many, whose mean is 1/2
        low, high = share_of([[lot.random() < p for _ in range(raters)] for p in easy]).interval
        covered += low <= 0.5 <= high
    assert 0.925 <= covered / 400 <= 0.99


def test_each_sae_has_an_accuracy_and_all_share_the_controls():
    items = study_of(400, 200, saes=3)
    raters = [rater(items, {0: 0.9, 1: 0.5, 2: 0.2}, random.Random(seed)) for seed in range(3)]
    found = [intrusion_scores(items, raters, sae, 2) for sae in range(3)]
    assert [one["accuracy"] for one in found] == pytest.approx([0.9, 0.5, 0.2], abs=0.04)
    assert {one["control"] for one in found} == {found[0]["control"]}
    assert found[0]["control"] == pytest.approx(0.2, abs=0.03)
    assert {one["random_sae"] for one in found} == {found[2]["accuracy"]}
    assert found[0]["over_random"] == pytest.approx(found[0]["accuracy"] - found[2]["accuracy"])
    assert found[0]["over_random_low"] > 0.5
    assert "over_random" not in found[2]
    assert found[0]["difference"] == pytest.approx(found[0]["accuracy"] - found[0]["control"])
    assert found[0]["kappa"] > found[1]["kappa"] > found[2]["kappa"] > -0.1
    assert [one["answers"] for one in found] == [1200] * 3


def test_unanswered_questions_do_not_count():
    items = {"1": Item(0, True, 3), "2": Item(0, True, 1), "3": Item(0, False, 0)}
    found = intrusion_scores(items, [{"1": 3}], 0, None)
    assert (found["accuracy"], found["answers"]) == (1, 1)
    assert "control" not in found
    assert "kappa" not in found
    assert intrusion_scores(items, [], 0, None) == {"raters": 0, "answers": 0}


@pytest.fixture(scope="module")
def study(target, model_folder, text_file, trained, tmp_path_factory):
    """A folder with a page and its key, of a tiny `temporal`, a tiny `stock:batchtopk` and `random`."""
    folder = tmp_path_factory.mktemp("study")
    fields = [f"--train.{name.replace('_', '-')}={value}" for name, value in TINY.items() if name != "window"]
    code = main([
        "human-study", "make", "--sae", "temporal", "--sae", "stock:batchtopk", "--model", str(model_folder),
        "--hook-name", target.hook_name, "--dataset", str(text_file), "--trained", str(trained), "--items", "4",
        "--controls", "2", "--n-contexts", "48", "--context-size", "32", "--output", str(folder / "study.html"),
        "--train.window=4", *fields,
    ])  # fmt: skip
    assert code == 0
    return folder


@pytest.fixture
def key(study):
    return json.loads((study / "study.key.json").read_text())


def test_a_question_has_four_excerpts_of_a_latent_and_an_intruder(study, key):
    assert len(key["items"]) == 3 * (4 + 2)
    assert [sum(known["sae"] == n and known["has_latent"] for known in key["known"].values()) for n in range(3)] == [
        4
    ] * 3
    places = []
    for name, known in key["known"].items():
        latents = known["latents"]
        of_latent = [latent for at, latent in enumerate(latents) if at != known["intruder"]]
        assert latents[known["intruder"]] not in of_latent
        assert len(set(of_latent)) == (1 if known["has_latent"] else 4)
        assert len(key["items"][name]) == 5
        for excerpt in key["items"][name]:
            assert max(excerpt["acts"]) == excerpt["acts"][excerpt["at"]] == 1
        texts = ["".join(excerpt["tokens"]) for excerpt in key["items"][name]]
        assert len(set(texts)) == 5
        places.append(known["intruder"])
    assert len(set(places)) > 2


def test_the_page_does_not_reveal_the_saes(study, key):
    text = (study / "study.html").read_text()
    assert not any(word in text for word in ("temporal", "batchtopk", "has_latent", '"intruder"', '"latents"'))
    order = [known["sae"] for known in key["known"].values()]
    assert order != sorted(order)


def answers_of(key, right: bool = True, name: str = "ann", kind: str = "human", **more):
    choices = {q: known["intruder"] if right else (known["intruder"] + 1) % 5 for q, known in key["known"].items()}
    return {"study": key["study"], "rater": name, "kind": kind, "answers": choices, **more}


def test_scores_are_on_the_leaderboard(study, key, tmp_path, capsys):
    files = []
    for name, right, kind in (("ann", True, "human"), ("bob", True, "human"), ("gpt", False, "model")):
        files.append(study / f"{name}.answers.json")
        files[-1].write_text(json.dumps(answers_of(key, right, name, kind)))
    assert main(["human-study", "score", *map(str, files), "--output", str(tmp_path / "runs")]) == 0
    output = capsys.readouterr().out
    assert "people find the intruder in 100% [28%, 100%] of 8 answers" in output
    assert "language models find the intruder in 0%" in output
    results = [json.loads(path.read_text()) for path in (tmp_path / "runs").rglob("*.json")]
    assert len(results) == 3
    by_name = {result["sae_lens_id"].partition("[")[0]: result for result in results}
    assert by_name["temporal"]["eval_result_metrics"]["people"]["kappa"] == 1
    assert by_name["temporal"]["eval_result_metrics"]["models"]["accuracy"] == 0
    assert by_name["temporal"]["eval_result_unstructured"]["trained"]
    assert not by_name["random"]["eval_result_unstructured"]["trained"]
    assert main(["leaderboard", "--results", str(tmp_path / "runs"), "--evals", "human_study"]) == 0
    assert "intruder found" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda a: a | {"study": "other"}, "give --key FILE"),
        (lambda a: a | {"answers": {"1": 5}}, "the answer to question 1 is 5"),
        (lambda a: a | {"answers": {"99": 1}}, "question 99, which the study does not have"),
        (lambda a: a | {"answers": []}, "give what the page saves"),
        (lambda a: a | {"answers": {}}, "holds no answer"),
        (lambda a: a | {"kind": "dog"}, "human or a model"),
        (lambda a: {}, "names no study"),
    ],
)
def test_malformed_answers_are_refused(study, key, tmp_path, change, message):
    file = study / "broken.json"
    file.write_text(json.dumps(change(answers_of(key))))
    with pytest.raises(UsageError, match=message):
        main(["human-study", "score", str(file), "--output", str(tmp_path / "runs")])
    assert not (tmp_path / "runs").exists()


def test_one_rater_counts_once_and_one_study_at_a_time(study, key, tmp_path):
    for name in ("a.json", "b.json"):
        (study / name).write_text(json.dumps(answers_of(key)))
    with pytest.raises(UsageError, match="two files are of the rater 'ann'"):
        main(["human-study", "score", str(study / "a.json"), str(study / "b.json")])
    with pytest.raises(UsageError, match="two files are of the rater 'ann'"):
        main(["human-study", "score", str(study / "a.json"), str(study / "a.json")])
    (study / "b.json").write_text(json.dumps(answers_of(key) | {"study": "other"}))
    with pytest.raises(UsageError, match="different studies"):
        main(["human-study", "score", str(study / "a.json"), str(study / "b.json")])
    with pytest.raises(UsageError, match="cannot read"):
        main(["human-study", "score", str(tmp_path / "none.json")])
    with pytest.raises(UsageError, match="is not a key"):
        main(["human-study", "score", str(study / "a.json"), "--key", str(study / "a.json")])


def test_it_does_not_evaluate_an_sae_alone(capsys):
    with pytest.raises(UsageError, match="human_study is made by python -m eval_runners human-study make, and score"):
        main(["human_study", "--sae", "random"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--items", "0"], "--items must be at least 1"),
        (["--strongest", "4"], "--strongest must be at least 5"),
        (["--controls", "-1"], "--controls must be at least 0"),
        (["--items", "10000"], "leave this SAE out"),
        (["--sae", "temporl"], "temporal"),
    ],
)
def test_impossible_studies_are_refused(target, model_folder, text_file, tmp_path, words, message):
    with pytest.raises(UsageError, match=message):
        main(["human-study", "make", "--sae", "random", "--model", str(model_folder), "--hook-name", target.hook_name,
              "--dataset", str(text_file), "--n-contexts", "8", "--context-size", "32", "--output", str(tmp_path / "s.html"),
              "--trained", str(tmp_path / "trained"), "--train.training-tokens=8192", "--train.batch-tokens=256",
              "--train.context-size=33", "--train.stream-window=4", "--train.d-sae=64", "--train.k=4", *words])  # fmt: skip
    assert not list(tmp_path.glob("s.*"))


class Judge(BaseHTTPRequestHandler):
    """Answers the chat completions of OpenAI's API; `script` lists status and text, request by request."""

    script: list = []  # noqa: RUF012
    seen: list = []  # noqa: RUF012

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.seen.append((self.path, self.headers.get("Authorization"), body))
        status, text = self.script.pop(0) if self.script else (200, "Number 2")
        answer = text if text.startswith("{") else json.dumps({"choices": [{"message": {"content": text}}]})
        self.send_response(status)
        self.end_headers()
        self.wfile.write(answer.encode())

    def log_message(self, *_):
        pass


@pytest.fixture
def endpoint(monkeypatch):
    monkeypatch.setattr(endpoint_module, "_wait", lambda *_: None)
    monkeypatch.delenv(KEY_VARIABLE, raising=False)
    Judge.script, Judge.seen = [], []
    server = ThreadingHTTPServer(("127.0.0.1", 0), Judge)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}/v1"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_language_model_answers_the_same_questions(study, key, endpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(KEY_VARIABLE, "secret-word")
    Judge.script = [
        (200, "4"),
        (200, "3 (3 out of 5)"),
        (429, "slow down"),
        (200, "**3**."),
        (400, '{"error": "filtered"}'),
    ]
    output = tmp_path / "judge.json"
    command = ["human-study", "judge", str(study / "study.key.json"), "--url", endpoint, "--model", "some/judge",
               "--output", str(output)]  # fmt: skip
    assert main(command) == 0
    answers = json.loads(output.read_text())
    assert answers["kind"] == "model"
    assert (answers["answers"]["1"], "2" in answers["answers"], answers["answers"]["3"]) == (3, False, 2)
    assert set(answers["answers"].values()) == {3, 2, 1}
    path, authorization, body = Judge.seen[0]
    assert (path, authorization, body["model"], body["temperature"]) == (
        "/v1/chat/completions",
        "Bearer secret-word",
        "some/judge",
        0,
    )
    one = key["items"]["1"][0]
    assert f"[[{one['tokens'][one['at']]}]]" in body["messages"][0]["content"]
    printed = capsys.readouterr()
    assert "1 replies did not name one number" in printed.out
    assert "1 questions were refused" in printed.out
    assert "filtered" in printed.out
    assert "secret-word" not in printed.out + printed.err + output.read_text()
    before = len(Judge.seen)
    assert main(command) == 0  # asks only what is left
    assert len(Judge.seen) == before + 2
    assert (
        main(
            [
                "human-study",
                "score",
                str(output),
                "--key",
                str(study / "study.key.json"),
                "--output",
                str(tmp_path / "runs"),
            ]
        )
        == 0
    )


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ([(401, "{}")], "set OPENAI_API_KEY"),
        ([(404, "{}")], "answers HTTP 404: check --url and the name of the model"),
        ([(500, "{}")] * 6, "fails .HTTP 500., 6 times: try again later"),
        ([(429, "{}")] * 6, "asks for patience .HTTP 429., 6 times"),
        ([(200, "{}")], "does not answer with a chat completion"),
        ([(400, '{"error": "too long"}')] * 3, "HTTP 400: .*too long.*check --model"),
    ],
)
def test_an_endpoint_that_does_not_answer_is_reported(study, endpoint, tmp_path, script, message):
    Judge.script = list(script)
    with pytest.raises(UsageError, match=message):
        main(["human-study", "judge", str(study / "study.key.json"), "--url", endpoint, "--model", "m", "--output",
              str(tmp_path / "judge.json")])  # fmt: skip
    assert not (tmp_path / "judge.json").exists()


def test_an_unreachable_endpoint_is_reported(study, tmp_path, monkeypatch):
    monkeypatch.setattr(endpoint_module, "_wait", lambda *_: None)
    urls = [
        ("http://127.0.0.1:9/v1", "cannot reach"),
        ("localhost", "must begin with http"),
        ("http://a:b@c", "no password"),
    ]
    for url, message in urls:
        with pytest.raises(UsageError, match=message):
            main(["human-study", "judge", str(study / "study.key.json"), "--url", url, "--model", "m", "--output",
                  str(tmp_path / "judge.json")])  # fmt: skip


def test_a_malformed_key_is_refused_and_no_other_credentials_are_sent(study, endpoint, tmp_path, monkeypatch):
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login someone password else")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    command = ["human-study", "judge", str(study / "study.key.json"), "--url", endpoint, "--model", "m", "--output",
               str(tmp_path / "judge.json")]  # fmt: skip
    for secret in ("a key", "clé", "line\n"):
        monkeypatch.setenv(KEY_VARIABLE, secret)
        with pytest.raises(UsageError, match="OPENAI_API_KEY holds what no key does"):
            main(command)
    monkeypatch.setenv(KEY_VARIABLE, "word")
    assert main(command) == 0
    assert {authorization for _, authorization, _ in Judge.seen} == {"Bearer word"}


@pytest.mark.parametrize(
    ("reply", "choice"),
    [
        ("3", 2),
        ("Number 2", 1),
        ("2 (2 of 5)", None),
        ("None of them (1-5)", None),
        ("4.5", None),
        ("7", None),
        ("", None),
    ],
)
def test_a_reply_counts_if_it_names_one_number(reply, choice):
    assert parse_choice(reply) == choice


def test_a_key_that_has_been_changed_is_refused(study, key, tmp_path):
    (study / "ann.json").write_text(json.dumps(answers_of(key)))
    for change in (
        {"known": {}}, {"saes": key["saes"][:1]}, {"saes": [one | {"path": "../../x.json"} for one in key["saes"]]},
        {"saes": [{}] * 3}, {"known": key["known"] | {"1": {}}},
    ):  # fmt: skip
        (tmp_path / "changed.key.json").write_text(json.dumps(key | change))
        with pytest.raises(UsageError, match="has been changed: make the study again"):
            main(["human-study", "score", str(study / "ann.json"), "--key", str(tmp_path / "changed.key.json")])


def test_an_intruder_is_an_excerpt_without_the_latent():
    """Latents at neighbouring positions of all contexts, so that excerpts hold several."""
    T = 40
    acts = torch.zeros(30, T, 12)
    for latent in range(12):
        acts[:, 3 * latent + 2, latent] = 1.0 + torch.arange(30) / 100
    order = acts.permute(2, 0, 1).flatten(1).nonzero()
    firing = Firing(
        torch.arange(30 * T).view(30, T), torch.zeros(30, T).bool(), order[:, 1],
        acts.permute(2, 0, 1).flatten(1)[order[:, 0], order[:, 1]], torch.arange(1, 13) * 30, torch.zeros(12),
    )  # fmt: skip
    settings = {"items": 8, "controls": 3, "strongest": 12, "seed": 0}
    questions = sample_questions(firing, 0, "planted", **settings)
    assert len(questions) == 11
    for q in [q for q in questions if q.item.has_latent]:
        intruder = q.excerpts[q.item.intruder]
        of_latent = next(latent for at, latent in enumerate(q.latents) if at != q.item.intruder)
        within = acts[intruder.context, intruder.first : intruder.first + len(intruder.ids), of_latent]
        assert not within.any()
    assert sample_questions(firing, 0, "planted", **settings) == questions


def press(driver, key):
    script = "dispatchEvent(new KeyboardEvent('keydown', { key: arguments[0], bubbles: true }))"
    driver.execute_script(f"document.activeElement.{script}", key)


@needs_chromium
def test_a_whole_study_is_answered_saved_and_scored(driver, study, key, tmp_path, capsys):
    opened(driver, study / "study.html")
    fetched(driver)
    driver.execute_script("localStorage.clear()")
    opened(driver, study / "study.html")
    for at, (_name, known) in enumerate(key["known"].items()):
        if at % 2:
            driver.execute_script(f"document.querySelectorAll('.choice')[{known['intruder']}].click()")
            driver.execute_script("document.getElementById('next').click()")
        else:
            press(driver, str(known["intruder"] + 1))
            press(driver, "Enter")
        if at == 6:  # what was answered is still there
            opened(driver, study / "study.html")
            assert driver.execute_script("return document.getElementById('place').textContent") == "Question 8 of 18"
            press(driver, "ArrowLeft")
            pressed = "return [...document.querySelectorAll('.choice')].findIndex(c => c.ariaPressed === 'true')"
            assert driver.execute_script(pressed) == known["intruder"]
            press(driver, "ArrowRight")
    assert driver.execute_script("return document.getElementById('count').textContent").startswith("all answered")
    driver.execute_script("document.getElementById('save').click()")
    assert "give a name" in driver.execute_script("return document.getElementById('said').textContent")
    driver.find_element("id", "rater").send_keys("Zoë 1")
    driver.execute_script("document.getElementById('save').click()")
    file = driver.downloads / "Zoë_1.answers.json"
    for _ in range(100):
        if file.exists():
            break
        time.sleep(0.05)
    saved = json.loads(file.read_text())
    assert saved["answers"] == {name: known["intruder"] for name, known in key["known"].items()}
    assert saved["rater"] == "Zoë 1"
    score = [
        "human-study",
        "score",
        str(file),
        "--key",
        str(study / "study.key.json"),
        "--output",
        str(tmp_path / "runs"),
    ]
    assert main(score) == 0
    assert "people find the intruder in 100%" in capsys.readouterr().out
    assert not [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]
    assert fetched(driver) == []
    for _ in range(2):
        driver.execute_script("document.getElementById('anew').click()")
    opened(driver, study / "study.html")
    assert driver.execute_script("return document.getElementById('count').textContent") == "0 answered"
    driver.execute_script("document.querySelectorAll('.choice')[1].focus()")
    press(driver, "Enter")  # is left to the button
    assert driver.execute_script("return document.getElementById('place').textContent") == "Question 1 of 18"
    broken = "localStorage.setItem(STORE, JSON.stringify({ answers: null, rater: 5, at: 'x' })); recall();"
    assert driver.execute_script(f"{broken} return [state.rater, state.at]") == ["5", 0]
    driver.execute_script("localStorage.clear()")


@needs_chromium
@needs_axe
def test_axe_finds_nothing(driver, study):
    opened(driver, study / "study.html")
    driver.execute_script("localStorage.clear()")
    driver.execute_script("document.querySelector('.choice').click(); document.getElementById('intro').open = true")
    check_accessible(driver)


@needs_chromium
def test_text_that_is_markup_is_shown_as_text(driver, tmp_path):
    excerpt = {"tokens": ["before ", HOSTILE, "\nafter"], "acts": [0, 1, 0.5], "at": 1}
    page = tmp_path / "hostile.html"
    page.write_text(render_page("human_study.html", {"study": HOSTILE, "items": {"1": [excerpt] * 5}}))
    opened(driver, page)
    assert HOSTILE in driver.execute_script("return document.querySelector('.choice').textContent")
    assert driver.execute_script("return document.body.dataset.broken") is None
    wide = "return document.documentElement.scrollWidth > innerWidth"
    driver.set_window_size(420, 900)
    assert not driver.execute_script(wide)
    driver.set_window_size(1300, 1000)


def test_every_score_is_a_metric_and_every_metric_is_a_score():
    items = study_of(4, 2, saes=2)
    raters = [rater(items, {0: 0.9, 1: 0.5}, random.Random(seed)) for seed in range(2)]
    metrics = load_evaluator("human_study").metrics
    for category in ("people", "models"):
        assert set(intrusion_scores(items, raters, 0, 1)) == {m.name for m in metrics if m.category == category}


def test_excerpts_of_a_question_are_of_whole_words():
    from types import SimpleNamespace

    from eval_runners.measures.firing import Excerpt
    from eval_runners.measures.intruder_questions import question_texts

    texts = ["ence", " of", " hair", "cut", " in", "tro"]
    tokenizer = SimpleNamespace(batch_decode=lambda rows, **_: [texts[i] for (i,) in rows])
    fields = {f.name: 0 for f in dataclasses.fields(Excerpt)}
    acts = [0.0, 0.0, 4.0, 1.0, 0.0, 0.0]
    excerpt = Excerpt(
        **{**fields, "ids": list(range(6)), "acts": acts, "at": 2, "is_cut_before": True, "is_cut_after": True}
    )
    (shown,) = question_texts(SimpleNamespace(excerpts=[excerpt]), tokenizer)  # type: ignore[arg-type]
    assert shown == {"tokens": [" of", " hair", "cut"], "at": 1, "acts": [0.0, 1.0, 0.25]}
