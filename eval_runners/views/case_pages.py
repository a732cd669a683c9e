"""Case studies as one HTML page, or as a folder whose page reads a latent's file when the latent is chosen.

    FOLDER/index.html          the list of latents
    FOLDER/latents/<n>.js      all that is shown of a latent

A browser refuses to fetch files from a page that was opened from disk, but runs scripts that lie beside it. So each
file of a latent is a script that calls a function of the page.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from eval_runners.views.page import render_page, script_call
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_folder_writable, write_atomically

TEMPLATE = "case_study.html"
PAGE, LATENTS = "index.html", "latents"
LISTED = ("latent", "label", "density", "score", "rank", "gain", "max", "cosine")
"""What the list of latents needs of each."""


def case_page(data: dict[str, Any]) -> str:
    """A case study as one page.

    Args:
        data: as `describe_latents` returns it, with `sae`, the SAE's name, in `about`.
    """
    return render_page(TEMPLATE, data)


def check_case_folder(folder: Path, option: str) -> Path:
    """Create a folder if necessary, and refuse one that holds anything but a case study.

    Raises:
        UsageError: names what the folder holds, or why it cannot be written to; `option` sets the folder.
    """
    check_folder_writable(folder, option)
    others = sorted(path.name for path in folder.iterdir() if path.name not in (PAGE, LATENTS))
    others += [f"{LATENTS}/{path.name}" for path in sorted(_files(folder)) if not re.fullmatch(r"\d+\.js", path.name)]
    if others:
        raise UsageError(f"{folder} holds other files, such as {others[0]}: give another {option}")
    return folder


def write_case_folder(data: dict[str, Any], folder: Path, option: str) -> int:
    """Write a case study as a folder; files of latents of an earlier one are removed.

    Args:
        data: as for `case_page`.
        folder: as `check_case_folder` returns it.
        option: sets the folder, for error messages.

    Returns:
        Bytes of all files.
    """
    check_folder_writable(folder / LATENTS, option)
    listed = []
    for row in data["latents"]:
        file = f"{LATENTS}/{row['latent']}.js"
        write_atomically(folder / file, script_call("receive", row), option)
        listed.append({name: row[name] for name in LISTED if name in row} | {"file": file})
    write_atomically(folder / PAGE, render_page(TEMPLATE, {**data, "latents": listed}), option)
    written = {folder / row["file"] for row in listed}
    for file in _files(folder):
        if file not in written:
            file.unlink()
    return sum(file.stat().st_size for file in (folder / PAGE, *written))


def _files(folder: Path) -> list[Path]:
    return list((folder / LATENTS).iterdir()) if (folder / LATENTS).is_dir() else []
