"""The files of a Neuronpedia import: rows of its tables, from descriptions of latents.

    <model id>/<layer>-<set>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl      one row each
    <model id>/<layer>-<set>/features/batch-<n>.jsonl.gz                                   a row for each latent
    <model id>/<layer>-<set>/activations/batch-<n>.jsonl.gz                                a row for each example

Neuronpedia's import reads the columns of a file from its first row, so all rows of a file have the same columns.
Columns that have a default in its tables are left out where the default is meant.

Source: the tables of github.com/hijohnnylin/neuronpedia, apps/webapp/prisma/schema.prisma, and its
app/api/admin/import/route.ts, at commit ebb8426f (2026-08).
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.common.hashing import hash_value

if TYPE_CHECKING:
    from eval_runners.measures.latent_dashboard import LatentDashboard

Row = dict[str, Any]

LONGEST = 128
"""Characters of a name."""
MODEL_ID = re.compile(r"[a-z0-9_-]{1,128}")
"""Names of models that Neuronpedia accepts, in lower case."""
SET_NAME = re.compile(r"(?!.*__)(?=.*[a-z])[a-z0-9_-]{1,128}")
"""Names of sets of SAEs; two underscores would begin a remark on a single SAE."""


@dataclass(frozen=True)
class Source:
    """An SAE as Neuronpedia names it, and who publishes it."""

    model_id: str
    """Name of the language model."""
    layer: str
    """Layer of the hook, or `e` for the embedding."""
    set_name: str
    """Name of the set of SAEs, one for each layer, that the SAE belongs to."""
    creator_name: str
    """Shown as its author."""
    creator_id: str
    """Id of a user of the Neuronpedia that imports it."""
    created: str
    """Time in ISO format."""

    @property
    def id(self) -> str:
        """The SAE's own name."""
        return f"{self.layer}-{self.set_name}"

    @property
    def folder(self) -> Path:
        """Folder of its files in the export."""
        return Path(self.model_id) / self.id

    @property
    def _shared(self) -> Row:
        return {"creatorId": self.creator_id, "createdAt": self.created}


def layer_of(hook_name: str) -> str:
    """The layer of a hook as Neuronpedia writes it.

    Raises:
        UsageError: the hook is in no layer.
    """
    if found := re.match(r"blocks\.(\d+)\.", hook_name):
        return found[1]
    if hook_name in ("hook_embed", "hook_pos_embed"):
        return "e"
    raise UsageError(f"Neuronpedia names an SAE by its layer, and {hook_name} is in none")


def slug(text: str) -> str:
    """A text as a name: lower case, with a dash for whatever names cannot hold; a long one ends in its hash."""
    name = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return name if len(name) <= LONGEST else f"{name[: LONGEST - 13]}-{hash_value(text)}"


def metadata_rows(
    source: Source,
    title: str,
    model: Row,
    cfg: Row,
    dataset: str,
    n_contexts: int,
    context_size: int,
    notes: str,
) -> dict[str, Row]:
    """Rows of the files that are not of single latents.

    Args:
        source: the SAE.
        title: what the release and the set are called in lists.
        model: columns of the model's row: `dimension`, `layers`, `neuronsPerLayer`, `tlensId`.
        cfg: config of the SAE, as SAELens reads it.
        dataset: name of the text.
        n_contexts: contexts that were read.
        context_size: tokens in a context, BOS included.
        notes: remarks on the SAE.

    Returns:
        Name of the file -> its row.
    """
    shared, creator = source._shared, source.creator_name
    visible = {"visibility": "PUBLIC"}
    release = {"name": source.set_name, "description": title, "descriptionShort": title, "urls": []}
    name = {"id": source.model_id, "displayNameShort": source.model_id, "displayName": source.model_id}
    group = {"modelId": source.model_id, "name": source.set_name, "description": title, "urls": []}
    one = {"id": source.id, "modelId": source.model_id, "setName": source.set_name, "hasDashboards": True}
    text = {"dataset": dataset, "num_prompts": n_contexts, "num_tokens_in_prompt": context_size}
    return {
        "release.jsonl": release | {"creatorName": creator} | visible | shared,
        "model.jsonl": name | model | {"owner": creator} | visible | shared,
        "sourceset.jsonl": group | {"creatorName": creator, "releaseName": source.set_name} | visible | shared,
        "source.jsonl": one | text | {"saelensConfig": cfg, "notes": notes} | visible | shared,
    }


def feature_row(source: Source, latent: LatentDashboard) -> Row:
    """Row of a latent in the table Neuron."""
    raised, lowered, channels = latent.raised, latent.lowered, latent.channels
    return {
        "modelId": source.model_id,
        "layer": source.id,
        "index": str(latent.latent),
        "sourceSetName": source.set_name,
        **source._shared,
        "maxActApprox": _short(latent.max),
        "frac_nonzero": _short(latent.density),
        "pos_str": [text for text, _ in raised],
        "pos_values": _shorts(value for _, value in raised),
        "neg_str": [text for text, _ in lowered],
        "neg_values": _shorts(value for _, value in lowered),
        "freq_hist_data_bar_heights": latent.acts.counts,
        "freq_hist_data_bar_values": _shorts(latent.acts.centres),
        "logits_hist_data_bar_heights": latent.logits.counts,
        "logits_hist_data_bar_values": _shorts(latent.logits.centres),
        "neuron_alignment_indices": [index for index, _, _ in channels],
        "neuron_alignment_values": _shorts(weight for _, weight, _ in channels),
        "neuron_alignment_l1": _shorts(share for _, _, share in channels),
    }


def activation_rows(source: Source, latent: LatentDashboard, texts: Sequence[str], identity: str) -> list[Row]:
    """Rows of a latent's examples in the table Activation.

    Args:
        source: the SAE.
        latent: the latent.
        texts: text of each token of the vocabulary.
        identity: of the export; with the number of the example it gives the row's id.
    """
    rows = []
    for number, example in enumerate(latent.examples):
        values = _shorts(example.acts)
        highest = max(values)
        rows.append(
            {
                "id": "c" + hash_value([identity, source.model_id, source.id, latent.latent, number], size=12),
                "modelId": source.model_id,
                "layer": source.id,
                "index": str(latent.latent),
                **source._shared,
                "tokens": [texts[token] for token in example.ids],
                "values": values,
                "maxValue": highest,
                "maxValueTokenIndex": values.index(highest),
                "minValue": min(values),
                "binMin": _short(example.low),
                "binMax": _short(example.high),
                "binContains": _short(example.share),
                "qualifyingTokenIndex": example.at,
            }
        )
    return rows


def to_jsonl(rows: Iterable[Row]) -> bytes:
    """Rows as JSON lines."""
    return "".join(json.dumps(row, allow_nan=False) + "\n" for row in rows).encode()


def to_gzip(rows: Iterable[Row]) -> bytes:
    """Rows as compressed JSON lines; equal rows give equal bytes."""
    return gzip.compress(to_jsonl(rows), compresslevel=6, mtime=0)


def _short(value: float) -> float:
    return float(f"{value:.6g}") if value else 0.0


def _shorts(values: Iterable[float]) -> list[float]:
    return [_short(value) for value in values]
