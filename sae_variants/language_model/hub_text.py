"""Datasets on the Hugging Face Hub: their names, the commit of a revision, and rows streamed over cut connections."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from sae_variants.common.errors import MOST_NAMES, UsageError
from sae_variants.common.hub_errors import (
    causes_of,
    hub_errors,
    hub_reason,
    is_transport,
    repeat_request,
    response_of,
    wait_of,
)
from sae_variants.language_model.rows import Row
from sae_variants.language_model.text import is_local_text

NAME = re.compile(r"(?P<repo>[\w.-]+/[\w.-]+?)(:(?P<config>[\w.,+=-]+))?(@(?P<revision>[\w./-]+))?")
_COMMIT = re.compile("[0-9a-f]{40}")
_CONFIGS = re.compile(r"among the available configs: \[(.*)\]")
CONVERTED = "refs/convert/parquet"
"""Revision at which the Hub keeps the files that it made of a dataset."""
ATTEMPTS = 5
"""Attempts in a row without a new row, after which a stream is given up."""
ROWS_PER_STATE = 1000
"""Rows between two states of a stream; after a cut, at most so many rows are read again."""


@dataclass(frozen=True)
class HubDataset:
    """Name of a dataset on the Hub: `ORG/NAME`, `ORG/NAME:config`, `ORG/NAME:config@revision`."""

    repo: str
    """Repository, such as `Skylion007/openwebtext`."""
    config: str | None = None
    """Configuration; None for the only one."""
    revision: str | None = None
    """Branch, tag or commit; None for the newest."""

    def __str__(self) -> str:
        config = f":{self.config}" if self.config else ""
        return self.repo + config + (f"@{self.revision}" if self.revision else "")


def is_hub_dataset(name: str) -> bool:
    """Return whether a name has the form of a dataset on the Hub."""
    return NAME.fullmatch(name) is not None and not name.startswith(".")


def parse_hub_dataset(name: str) -> HubDataset:
    """Return the parts of a dataset's name; raise a UsageError if it is none."""
    match = NAME.fullmatch(name)
    if match is None:
        raise UsageError(f"{name!r} is no dataset: write ORG/NAME, ORG/NAME:config or ORG/NAME@revision")
    return HubDataset(**match.groupdict())


def pin_dataset(name: str) -> str:
    """Return the name of a dataset with the commit of its revision in the place of the revision.

    Raises:
        UsageError: The Hub cannot be reached, or has no such dataset or revision.
    """
    from huggingface_hub import HfApi, constants

    dataset = parse_hub_dataset(name)
    if dataset.revision and _COMMIT.fullmatch(dataset.revision):
        return name
    if constants.HF_HUB_OFFLINE:
        return str(replace(dataset, revision=_cached_folder(dataset).name))
    with dataset_errors(name):
        info = repeat_request(
            lambda: HfApi().dataset_info(dataset.repo, revision=dataset.revision, timeout=30),
            ATTEMPTS,
            after_cuts=False,
        )
        return str(replace(dataset, revision=info.sha))


def dataset_errors(name: str) -> AbstractContextManager[None]:
    """Return the context that turns errors of the Hub into a UsageError that names a dataset."""
    return hub_errors(f"cannot get the dataset {name} on the Hugging Face Hub")


def dataset_commit(name: str) -> str | None:
    """Return the commit of a dataset for the provenance; None for text that is not on the Hub, or if it is silent.

    Args:
        name: Name of a dataset, or path of a local file or folder.
    """
    from huggingface_hub import HfApi, constants

    if not is_hub_dataset(name) or is_local_text(name):
        return None
    dataset = parse_hub_dataset(name)
    if dataset.revision and _COMMIT.fullmatch(dataset.revision):
        return dataset.revision
    try:
        if constants.HF_HUB_OFFLINE:
            return _cached_folder(dataset).name
        return HfApi().dataset_info(dataset.repo, revision=dataset.revision, timeout=10).sha
    except Exception as error:
        if isinstance(error, UsageError) or hub_reason(error) or is_transport(error):
            return None
        raise


def stream_rows(name: str, split: str) -> Iterator[tuple[str, Row]]:
    """Stream the rows of a dataset; after a cut connection the stream goes on with the next row.

    Args:
        name: Name of the dataset.
        split: Its split, such as `train`.

    Yields:
        The row's position for error messages, and the row.

    Raises:
        UsageError: The dataset cannot be streamed, or the Hub stays unreachable.
    """
    count, attempt = 0, 0
    state: dict[str, Any] | None = None
    at_state = 0
    while True:
        try:
            dataset = _open(name, split)
            if state is not None:
                dataset.load_state_dict(state)
            for number, row in enumerate(dataset, start=at_state + 1):
                if number > count:
                    count, attempt = number, 0
                    yield f"row {number}", row
                if number % ROWS_PER_STATE == 0:
                    state, at_state = dataset.state_dict(), number
            return
        except (UsageError, GeneratorExit):
            raise
        except Exception as error:
            attempt += 1
            wait = wait_of(error, attempt) if _is_cut(error) else None
            if wait is None or attempt >= ATTEMPTS:
                raise _reason(name, split, error) from error
            time.sleep(wait)


def _open(name: str, split: str) -> Any:
    from datasets import load_dataset
    from datasets.utils.logging import disable_progress_bar
    from huggingface_hub import constants

    dataset = parse_hub_dataset(name)
    disable_progress_bar()
    if constants.HF_HUB_OFFLINE:
        source, revision = str(_cached_folder(dataset)), None
    else:
        source, revision = dataset.repo, dataset.revision
    return load_dataset(source, dataset.config, split=split, revision=revision, streaming=True, trust_remote_code=False)


def _cached_folder(dataset: HubDataset) -> Path:
    """Return the folder of a dataset in the local cache of the Hub; its name is the commit.

    Raises:
        UsageError: The dataset is not in the cache.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        return Path(
            snapshot_download(dataset.repo, repo_type="dataset", revision=dataset.revision, local_files_only=True)
        )
    except LocalEntryNotFoundError as error:
        raise UsageError(
            f"cannot get the dataset {dataset} on the Hugging Face Hub: HF_HUB_OFFLINE is set, and it is not in the "
            f"local cache, where `hf download {dataset.repo} --repo-type dataset` puts it; --dataset takes a local "
            "file or folder too"
        ) from error


def _is_cut(error: BaseException) -> bool:
    """Return whether an error means that a connection broke or the Hub was busy."""
    response = response_of(error)
    if response is not None:
        return wait_of(error, 0) is not None
    return any(is_transport(cause) or isinstance(cause, TimeoutError) for cause in causes_of(error))


def _reason(name: str, split: str, error: BaseException) -> UsageError:
    if reason := hub_reason(error):
        return UsageError(f"cannot get the dataset {name} on the Hugging Face Hub: {reason}")
    first = (str(error).splitlines() or [type(error).__name__])[0][:300]
    if _is_cut(error):
        return UsageError(f"cannot get the dataset {name} on the Hugging Face Hub: the connection broke: {first}")
    if "trust_remote_code" in str(error):
        return UsageError(
            f"the dataset {name} is loaded by code of its repository, which is not run: give a dataset of files, or "
            f"{replace(parse_hub_dataset(name), revision=CONVERTED)} if the Hub converted it"
        )
    if match := _CONFIGS.search(str(error)):
        configs = re.findall("'([^']*)'", match[1])
        example = replace(parse_hub_dataset(name), config=configs[0], revision=None) if configs else "ORG/NAME:CONFIG"
        more = f", and {len(configs) - MOST_NAMES} more" if len(configs) > MOST_NAMES else ""
        known = f"{', '.join(configs[:MOST_NAMES])}{more}"
        return UsageError(f"the dataset {name} has several configs: write {example}; known: {known}")
    more = " ".join(line.strip() for line in str(error).splitlines()[1:4]) if first.endswith(":") else ""
    return UsageError(f"cannot read the split {split!r} of the dataset {name}: {first} {more[:300]}".rstrip())
