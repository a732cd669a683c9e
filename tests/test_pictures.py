"""Pictures of README and results: each command still makes them, for light and dark pages, small and wide enough."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import numpy as np
import pytest
from test_case_pages import HOSTILE

from eval_runners.__main__ import main
from eval_runners.views.case_pages import case_page
from eval_runners.views.figures import dark_file
from sae_variants.common.errors import UsageError

ROOT = Path(__file__).parent.parent
RECIPE = re.search(r"^pictures:.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE)[1]
COMMANDS = {
    Path(words[-1]).name: words
    for line in RECIPE.replace("\\\n", " ").splitlines()
    if (words := shlex.split(line.partition("-m eval_runners ")[2]))
}
DOCUMENTS = [ROOT / "README.md", *(ROOT / "results").glob("*.md")]
SHOWN = re.compile(
    r'<picture>\n  <source media="\(prefers-color-scheme: dark\)" srcset="(.*)">\n'
    r'  <img alt=".{20,}" src="(.*)" width="902">\n</picture>'
)


def check(file):
    """A picture and its dark one are PNG files below 150 kB, as wide as GitHub shows them; their texts differ."""
    from matplotlib.image import imread

    pixels = [imread(path) for path in (file, dark_file(file))]
    assert all(path.stat().st_size < 150_000 for path in (file, dark_file(file)))
    assert [image.shape[1] for image in pixels] == [902, 902]
    light, dark = (np.median(image[image[..., 3] == 1][:, :3].mean(1)) for image in pixels)
    assert light < dark


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_makes_each_picture(name, tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    assert main([*COMMANDS[name][:-1], str(tmp_path / name)]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted((name, dark_file(Path(name)).name))
    check(tmp_path / name)


def test_the_pictures_of_the_documents_are_light_and_dark_and_made_by_a_command():
    shown = []
    for document in DOCUMENTS:
        text = document.read_text()
        assert len(SHOWN.findall(text)) == text.count("<picture>")
        for dark, light in SHOWN.findall(text):
            assert dark == str(dark_file(Path(light)))
            shown.append(Path(light).name)
            check(document.parent / light)
    assert set(shown) == set(COMMANDS)
    readme = [Path(light).name for _, light in SHOWN.findall((ROOT / "README.md").read_text())]
    assert sorted(readme) == sorted(COMMANDS)


def latents(*rows):
    words = [["a$_x$", 0.5], ["日本\x00", 0.2]]
    about = {"sae": HOSTILE, "d_sae": 9, "alive": 9, "tokens": 9, "contexts": 1, "model": "m", "hook": "h"}
    fires = {
        "label": "'$x$'", "score": 0.5, "density": 0.1, "max": 2.0, "raised": words, "lowered": words,
        "top": [{"tokens": ["\n$a^", " long" * 40, " b"], "acts": [0, 1.0, 2.0], "at": 2, "cut": [True, False]}],
        "histogram": {"low": 1.0, "high": 1.0, "counts": [1, 2]},
    }  # fmt: skip
    return {
        "about": about,
        "latents": [{"latent": n, **(fires if alive else {"label": "", "top": None})} for n, alive in rows],
    }


def test_a_latent_of_a_page_is_drawn_whatever_its_text(tmp_path):
    (tmp_path / "page.html").write_text(case_page(latents((3, True), (5, False))))
    command = ["case-study", "--page", str(tmp_path / "page.html"), "--picture", str(tmp_path / "p.png")]
    assert main(command) == 0
    assert (tmp_path / "p-dark.png").read_bytes().startswith(b"\x89PNG")
    with pytest.raises(UsageError, match="latent 5 does not fire"):
        main([*command, "--latents", "5"])
    with pytest.raises(UsageError, match=r"--latents 4 is not on .*: it has 3, 5"):
        main([*command, "--latents", "4"])


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--picture", "p.png"], "--sae is missing"),
        (["--page", "p.html"], "--page goes with --picture"),
        (["--page", "p.html", "--sae", "topk", "--picture", "p.png"], "without --sae"),
        (["--page", "missing.html", "--picture", "p.png"], "missing.html cannot be read"),
        (["--page", "README.md", "--picture", "p.png"], "README.md holds no case study"),
        (["--sae", "topk", "--picture", "p.svg"], "ends with .png, not"),
        (["--sae", "topk", "--picture", "README.md/p.png"], "cannot write README.md/p.png.* give another --picture"),
        (["--sae", "topk", "--folder", "f", "--output", "o.html"], "give one of the two"),
        (
            ["--page", "p.html", "--picture", "p.png", "--latents", "111,4"],
            "--latents 111,4: with --page, give the number",
        ),
        (["--page", "p.html", "--picture", "p.png", "--latents", "best:3"], "--latents best:3: with --page, give the"),
        (["--sae", "topk", "--latents", "foo"], "argument --latents: give best:12, random:20, or numbers"),
        (["--sae", "topk", "--latents", "1,2,9999"], "--latents 9999: the SAE has 1024 latents, numbered from 0"),
    ],
)
def test_what_cannot_be_drawn_is_refused(options, says, monkeypatch):
    monkeypatch.chdir(ROOT)
    with pytest.raises(UsageError, match=says):
        main(["case-study", *options])


@pytest.mark.parametrize(
    "data",
    [
        "{",
        "[]",
        "{}",
        '{"about": {"sae": "a"}, "latents": []}',
        '{"latents": [{"latent": 1}]}',
        '{"about": {"sae": "a"}, "latents": [{"latent": 1, "top": [1]}]}',
    ],
)
def test_a_page_without_latents_is_refused(data, tmp_path):
    (tmp_path / "page.html").write_text(f'<script type="application/json" id="data">{data}</script>')
    with pytest.raises(UsageError, match="holds no case study with latents"):
        main(["case-study", "--page", str(tmp_path / "page.html"), "--picture", str(tmp_path / "p.png")])
