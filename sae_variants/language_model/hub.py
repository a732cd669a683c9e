"""Models by their name on the Hugging Face Hub: what is downloaded, at which revision."""

from __future__ import annotations

import re
import sys
from contextlib import AbstractContextManager
from fnmatch import fnmatch
from pathlib import Path

from sae_variants.common.errors import UsageError
from sae_variants.common.hub_errors import hub_errors, is_transport, repeat_request
from sae_variants.language_model.folders import is_local_model, model_id, register_folder, register_model_folder
from sae_variants.language_model.model_files import CONFIG, TOKENIZER, WEIGHTS, check_model_folder

_HUB_ID = re.compile(r"(?P<repo>[\w.-]+(/[\w.-]+)?)(@(?P<revision>[\w./-]+))?")
_OWN_FORMAT = ("NeelNanda/", "ArthurConmy/", "Baidicoot/")
"""Owners of models in TransformerLens' own format, which transformers does not read."""


def model_revision(name: str) -> str:
    """Return `model_id`; for a model on the Hub with the commit in the local cache, which is the one loaded."""
    from huggingface_hub import try_to_load_from_cache

    if is_local_model(name):
        return model_id(name)
    config = try_to_load_from_cache(official_name(name), "config.json")
    return f"{name}@{Path(config).parent.name}" if isinstance(config, str) else name


def official_name(name: str) -> str:
    """Return a model's name on the Hub without its revision, for any of TransformerLens' aliases of it."""
    from transformer_lens.loading_from_pretrained import make_model_alias_map

    name = name.partition("@")[0]
    return make_model_alias_map().get(name.lower(), name)


def register_model(model: str) -> str:
    """Register a model folder or a model on the Hub, which is downloaded, and return the registered name.

    Args:
        model: Path of a folder, or `NAME`, `ORG/NAME` or `ORG/NAME@REVISION` on the Hub.

    Raises:
        UsageError: There is no such folder or model, it cannot be downloaded, or it is no causal language model.
    """
    if Path(model).exists() or not (parts := _HUB_ID.fullmatch(model)):
        if "@" in model and not Path(model).exists():
            raise UsageError(f"no model {model!r}: on the Hub it is written ORG/NAME or ORG/NAME@REVISION")
        return register_model_folder(Path(model))
    repo, revision = official_name(parts["repo"]), parts["revision"]
    if repo.startswith(_OWN_FORMAT):
        if revision:
            raise UsageError(f"{repo} is loaded by TransformerLens, which knows no revision: give {repo} alone")
        return repo
    name = f"{repo}@{revision}" if revision else repo
    folder = _download(repo, revision)
    check_model_folder(folder)
    register_folder(name, folder, identity=f"{repo}@{folder.name}")
    return name


def model_errors(what: str) -> AbstractContextManager[None]:
    """Return the context that turns errors of the Hub into a UsageError; `what` names the model."""
    otherwise = "use --target sandbox or --model FOLDER, which need none"
    return hub_errors(f"cannot get {what} on the Hugging Face Hub", otherwise=otherwise)


def is_listed(name: str) -> bool:
    """Return whether a name without a revision is on TransformerLens' list of models."""
    from transformer_lens.supported_models import OFFICIAL_MODEL_NAMES

    return "@" not in name and official_name(name) in OFFICIAL_MODEL_NAMES


def find_model(name: str) -> str:
    """Return the name by which TransformerLens loads a model of the Hub, which is downloaded if it is not on its list.

    Raises:
        UsageError: The model cannot be downloaded.
    """
    from huggingface_hub import HfApi, try_to_load_from_cache

    if not is_listed(name):
        return register_model(name)
    official = official_name(name)
    if not isinstance(try_to_load_from_cache(official, "config.json"), str):
        with model_errors(f"the model {name}"):
            repeat_request(lambda: HfApi().model_info(official, timeout=10))  # before the longer retries of a download
    return name


def folder_name(model_name: str) -> str:
    """Return a registered model's name as the name of a folder, with the commit of a downloaded model."""
    identity = model_id(model_name)
    name, _, commit = identity.partition("@")
    return f"{name.replace('/', '--')}-{commit[:8]}" if commit else model_name.replace("/", "--")


def needed_files(names: list[str]) -> list[str]:
    """Choose the files of a repository that a model needs: config, tokenizer, and its weights in one format."""
    top = [name for name in names if "/" not in name and not name.startswith("consolidated")]

    def matching(*patterns: str) -> list[str]:
        return [name for name in top if any(fnmatch(name, pattern) for pattern in patterns)]

    weights = matching(WEIGHTS[0]) or matching(WEIGHTS[1])
    kinds = {name.partition(".safetensors" if ".safetensors" in name else ".bin")[1] for name in weights}
    indices = [name for name in matching("*.index.json") if any(kind in name for kind in kinds)]
    return sorted({*matching(*CONFIG, *TOKENIZER, "*.jinja"), *weights, *indices})


def _download(repo: str, revision: str | None) -> Path:
    """Return the folder in the local cache that holds a model of the Hub; its name is the commit."""
    from huggingface_hub import HfApi, constants, snapshot_download

    what = f"the model {repo}" + (f" at revision {revision!r}" if revision else "")
    with model_errors(what):
        if constants.HF_HUB_OFFLINE:
            return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[*CONFIG]))
        try:
            info = repeat_request(lambda: HfApi().model_info(repo, revision=revision, timeout=10))
        except Exception as error:
            if not is_transport(error):
                raise
            print(f"note: the Hub cannot be reached: {what} is taken from the local cache", file=sys.stderr)
            return Path(snapshot_download(repo, revision=revision, local_files_only=True, allow_patterns=[*CONFIG]))
        names = needed_files([file.rfilename for file in info.siblings or []])
        return Path(snapshot_download(repo, revision=revision, allow_patterns=names))
