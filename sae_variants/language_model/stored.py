"""Activations at a hook on disk: computed once, and read by every training and evaluation that needs them again.

    <root>/<hash of the key>/key.json              what decides the activations: model, hook, data type, versions
    <root>/<hash of the key>/<hash>.safetensors    activations of up to `CONTEXTS_PER_PASS` contexts, whose hash it is

A context is found by its token ids alone, so that one folder serves any text, order, seed, window and batch, and the
numbers are those of the language model. What is missing is computed and added, by several processes at once if need
be. A shard is whole or not there, and its checksum is compared when a process reads it first; a damaged one is named
and computed again.

Shapes: C contexts, T tokens in a context, D = d_in.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import shutil
import sys
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING

from sae_variants.common.errors import UsageError, describe_error
from sae_variants.common.files import new_file
from sae_variants.common.hashing import hash_value
from sae_variants.language_model.hooks import CONTEXTS_PER_PASS, activation_key, hook_activations
from sae_variants.language_model.target import Target

if TYPE_CHECKING:
    from torch import Tensor
    from transformer_lens import HookedTransformer

KEY, CHECKSUM, CONTEXTS = "key.json", "crc32", "contexts"
DIGEST_BYTES = 12
"""Length of the hash of a context's token ids."""


def target_activations(
    target: Target, model: HookedTransformer, dtype: str = "float32", contexts_per_pass: int = CONTEXTS_PER_PASS
) -> Callable[[Tensor], Tensor]:
    """Return the function from token ids to the activations at a target's hook, from the target's store if it has one.

    Args:
        target: Names the hook and the store.
        model: The target's language model.
        dtype: Data type of the activations.
        contexts_per_pass: Contexts in a batch of the language model, where there is no store.

    Returns:
        Function from token ids [C, T] to activations [C, T, D]; heads are concatenated.
    """
    if target.activations is None:
        return hook_activations(model, target.hook_name, dtype, contexts_per_pass)
    return StoredActivations(target.activations, target, model, dtype)


class StoredActivations:
    """Activations of contexts at a hook, kept in a folder."""

    def __init__(self, root: Path, target: Target, model: HookedTransformer, dtype: str = "float32") -> None:
        """Open or create the folder of a language model and hook below a root.

        Args:
            root: Folder that may hold the activations of several models and hooks.
            target: Language model and hook.
            model: The loaded language model.
            dtype: Data type of the activations that are returned; they are kept in that of the language model.
        """
        from sae_lens.util import str_to_dtype

        device, native = str(model.cfg.device), str(model.cfg.dtype).removeprefix("torch.")
        key = activation_key(target, model, device)
        self.folder = root / hash_value(key, size=10)
        self._compute = hook_activations(model, target.hook_name, native)
        self._device, self._dtype, self._kept_dtype = device, str_to_dtype(dtype), str_to_dtype(native)
        self._place: dict[bytes, tuple[str, int]] = {}
        """Shard and row by the digest of a context."""
        self._whole: set[str] = set()
        """Shards whose checksum was compared."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with new_file(self.folder / KEY) as partial:
                partial.write_text(json.dumps(key, indent=2))
        except OSError as error:
            raise self._unwritable(error) from error
        for path in self.folder.glob("*.safetensors"):
            self._index(path)

    def __call__(self, ids_CT: Tensor) -> Tensor:
        """Return the activations [C, T, D] of contexts of token ids [C, T]; compute and keep those that are missing."""
        digests = [_digest(ids_T) for ids_T in ids_CT]
        for name in {self._place[digest][0] for digest in digests if digest in self._place}:
            self._is_whole(name)
        missing = list({digest: row for row, digest in enumerate(digests) if digest not in self._place}.values())
        for start in range(0, len(missing), CONTEXTS_PER_PASS):
            rows = missing[start : start + CONTEXTS_PER_PASS]
            self._collect(ids_CT[rows], [digests[row] for row in rows])
        return self._read(digests).to(self._dtype).to(self._device)

    def n_missing(self, contexts: Iterable[Tensor]) -> int:
        """Return how many different contexts, given as their token ids [T], are not there."""
        return len({_digest(ids_T) for ids_T in contexts} - self._place.keys())

    def bytes_of_context(self, context_size: int, d_in: int) -> int:
        """Return the size of the activations of a context of T tokens."""
        return context_size * d_in * self._kept_dtype.itemsize

    @property
    def is_empty(self) -> bool:
        """Whether no context is there."""
        return not self._place

    @property
    def bytes_free(self) -> int:
        """Bytes that are left on the disk."""
        return shutil.disk_usage(self.folder).free

    def _collect(self, ids_CT: Tensor, digests: list[bytes]) -> None:
        """Compute the activations of contexts, and write them as a shard, unless another process has meanwhile."""
        from safetensors import SafetensorError
        from safetensors.torch import save_file

        name = _shard_name(digests)
        path = self._path(name)
        if path.exists() and self._index(path) and self._is_whole(name):
            return
        acts_CTD = self._compute(ids_CT).cpu().contiguous()
        notes = {CHECKSUM: str(_checksum(acts_CTD)), CONTEXTS: " ".join(digest.hex() for digest in digests)}
        try:
            with new_file(path) as partial:
                save_file({"acts": acts_CTD}, partial, notes)
        except (OSError, SafetensorError) as error:
            raise self._unwritable(error) from error
        self._add(name, digests)
        self._whole.add(name)

    def _read(self, digests: list[bytes]) -> Tensor:
        """Return the kept activations [C, T, D] of contexts."""
        import torch
        from safetensors import safe_open

        parts = []
        for name, run in itertools.groupby((self._place[digest] for digest in digests), key=lambda place: place[0]):
            with safe_open(self._path(name), "pt") as shard:
                parts.append(shard.get_tensor("acts")[[row for _, row in run]])
        return torch.cat(parts)

    def _index(self, path: Path) -> bool:
        """Note which contexts a shard holds; return False, and remove it, if it is unreadable or a copy of another."""
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(path, "pt") as shard:
                digests = [bytes.fromhex(text) for text in shard.metadata()[CONTEXTS].split()]
        except (SafetensorError, KeyError, ValueError, TypeError) as error:
            return self._remove(path, describe_error(error))
        if path.stem != _shard_name(digests):
            return self._remove(path, "it holds other contexts than its name says")
        self._add(path.stem, digests)
        return True

    def _add(self, name: str, digests: list[bytes]) -> None:
        self._place.update({digest: (name, row) for row, digest in enumerate(digests)})

    def _is_whole(self, name: str) -> bool:
        """Compare the checksum of a shard, once; return False, and remove the shard, if it is damaged."""
        from safetensors import SafetensorError, safe_open

        if name in self._whole:
            return True
        path = self._path(name)
        try:
            with safe_open(path, "pt") as shard:
                expected, found = shard.metadata()[CHECKSUM], str(_checksum(shard.get_tensor("acts")))
        except (OSError, SafetensorError, KeyError, TypeError) as error:  # no file, or no shard of ours
            return self._remove(path, describe_error(error))
        if expected != found:
            return self._remove(path, "its checksum differs")
        self._whole.add(name)
        return True

    def _remove(self, path: Path, reason: str) -> bool:
        print(f"warning: {path} is damaged: {reason}; its activations are computed again", file=sys.stderr)
        path.unlink(missing_ok=True)
        self._place = {digest: place for digest, place in self._place.items() if place[0] != path.stem}
        return False

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _unwritable(self, error: Exception) -> UsageError:
        reason = getattr(error, "strerror", None) or describe_error(error)
        return UsageError(f"cannot keep activations in {self.folder}: {reason}; give another --activations")


def _digest(ids_T: Tensor) -> bytes:
    return hashlib.blake2b(ids_T.cpu().numpy().astype("int64").tobytes(), digest_size=DIGEST_BYTES).digest()


def _shard_name(digests: list[bytes]) -> str:
    """Return the name of the shard of contexts, which tells what it must hold."""
    return hashlib.blake2b(b"".join(digests), digest_size=DIGEST_BYTES).hexdigest()


def _checksum(acts_CTD: Tensor) -> int:
    import torch

    return zlib.crc32(acts_CTD.view(torch.uint8).numpy().data)
