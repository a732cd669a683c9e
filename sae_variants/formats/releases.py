"""SAELens' registry of released SAEs: ids, listings, and loading by SAELens' own `SAE.from_pretrained`."""

from __future__ import annotations

import difflib
import re
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.formats.hub import repository_errors

if TYPE_CHECKING:
    from sae_lens import SAE
    from sae_lens.loading.pretrained_saes_directory import PretrainedSAELookup

MOST_NEAR = 5
"""An error proposes at most so many releases."""


def releases() -> dict[str, PretrainedSAELookup]:
    """Return the releases that SAELens knows, by name. Needs no network."""
    from sae_lens.loading.pretrained_saes_directory import get_pretrained_saes_directory

    return get_pretrained_saes_directory()


def split_release(name: str) -> tuple[str, str] | None:
    """Return release and SAE id of `RELEASE:SAE_ID` or `RELEASE`; None if SAELens knows no such release."""
    release, _, sae_id = name.partition(":")
    return (release, sae_id) if release and release in releases() else None


def check_known(name: str, others: Collection[str]) -> None:
    """Check that a name that is no release resembles none, either by a few letters or as a part of its name.

    Args:
        name: `RELEASE:SAE_ID` or `RELEASE`.
        others: Names that are no releases; what resembles one of them is not taken for a part of a release's name.

    Raises:
        UsageError: It does; the message names the nearest releases.
    """
    release, known = name.partition(":")[0], list(releases())
    near = difflib.get_close_matches(release, known, n=3, cutoff=0.75)
    if release and not near and not difflib.get_close_matches(name, others, cutoff=0.5):
        near = sorted(each for each in known if release in each)
    if near:
        more = f", or one of {len(near) - MOST_NEAR} more" if len(near) > MOST_NEAR else ""
        raise UsageError(f"unknown release {release!r}: did you mean {' or '.join(near[:MOST_NEAR])}{more}?")


def check_release(release: str, sae_id: str) -> None:
    """Check that a release has an SAE of that id, and that it is an autoencoder.

    Raises:
        UsageError: It has none; the message names the nearest ids.
    """
    lookup = releases()[release]
    if re.search(r"transcoder|crosscoder|clt", f"{release} {lookup.conversion_func}"):
        raise UsageError(f"{release} holds transcoders, not autoencoders")
    if not sae_id:
        ids = ", ".join(list(lookup.saes_map)[:2])
        raise UsageError(f"{release} has {len(lookup.saes_map)} SAEs: give one as {release}:SAE_ID, such as {ids}")
    if sae_id not in lookup.saes_map:
        near = difflib.get_close_matches(sae_id, list(lookup.saes_map), n=5, cutoff=0.3) or list(lookup.saes_map)[:5]
        raise UsageError(f"{release} has no SAE {sae_id!r}: near are {', '.join(near)}; --sae {release} lists its ids")


def list_release(release: str) -> list[str]:
    """Return lines with the ids of a release, their L0 and hook where known."""
    lookup = releases()[release]
    ids = list(lookup.saes_map)
    width = max(len(sae_id) for sae_id in ids)
    lines = [f"{release}: {len(ids)} SAEs of {lookup.model}, from {lookup.repo_id}"]
    for sae_id in ids:
        l0, hook = lookup.expected_l0.get(sae_id), hook_of(lookup, sae_id)
        facts = [f"L0 {l0:g}" if l0 else "", hook or ""]
        lines.append(f"  {sae_id:{width}}  {'  '.join(filter(None, facts))}".rstrip())
    return lines


def hook_of(lookup: PretrainedSAELookup, sae_id: str) -> str | None:
    """Return the hook of a released SAE where its name says it; nothing is downloaded."""
    from sae_lens.loading.pretrained_sae_loaders import get_gemma_2_config_from_hf

    if match := re.search(r"blocks\.\d+\.[a-z_]+(?:\.hook_[a-z]+)?", sae_id):
        return match[0]
    if lookup.conversion_func == "gemma_2":
        try:
            return get_gemma_2_config_from_hf(lookup.repo_id, lookup.saes_map[sae_id], "cpu")["hook_name"]
        except ValueError:
            return None
    return None


def load_release(release: str, sae_id: str) -> SAE[Any]:
    """Download and load a released SAE.

    Raises:
        UsageError: The release has no such SAE, the Hub cannot be reached or refuses, or the SAE cannot be loaded.
    """
    from sae_lens import SAE
    from sae_lens.loading.pretrained_sae_loaders import NAMED_PRETRAINED_SAE_LOADERS, get_conversion_loader_name

    check_release(release, sae_id)
    loader = NAMED_PRETRAINED_SAE_LOADERS[get_conversion_loader_name(release)]

    def load_as_wide_as_the_weights(*args: Any, **kwargs: Any) -> Any:
        """Call SAELens' loader. Some loaders take d_in and d_sae from names; the weights know better."""
        cfg, weights, log_sparsity = loader(*args, **kwargs)
        if "W_enc" in weights and weights["W_enc"].ndim == 2:
            cfg["d_in"], cfg["d_sae"] = weights["W_enc"].shape
        return cfg, weights, log_sparsity

    with repository_errors(releases()[release].repo_id):
        try:
            return SAE.from_pretrained(release, sae_id, device="cpu", converter=load_as_wide_as_the_weights)
        except (ValueError, KeyError, TypeError, RuntimeError, AttributeError) as error:
            if type(error).__module__.startswith("huggingface_hub"):
                raise
            raise UsageError(f"cannot load {release}:{sae_id}: {describe_error(error)}") from error
