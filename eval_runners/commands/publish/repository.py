"""Builds the files of a published repository: a folder for each SAE in SAELens' layout, its results, and the card."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from eval_runners.contract.contract import UNSTRUCTURED, Result
from eval_runners.contract.located import LocatedSAE
from eval_runners.leaderboard.boards import make_boards
from eval_runners.leaderboard.rows import Column, Row, metrics_of, written_at
from eval_runners.store.paths import without_paths
from eval_runners.store.read import eval_seed_of, provenance_of, weight_hash_of
from eval_runners.views.card import CardEntry, render_card
from sae_variants.common.errors import UsageError
from sae_variants.training.plan import RECORD, TRACE

COPIED = ("sae_weights.safetensors", "sparsity.safetensors", TRACE)
"""Files of an SAE's folder that are published as they are, where they exist."""


def build_repository(
    folder: Path,
    repo: str,
    located: Sequence[LocatedSAE],
    results: Sequence[Result],
    licence: str,
    force: bool,
    kept: Mapping[str, Sequence[Result]] | None = None,
) -> list[CardEntry]:
    """Write the files of a repository.

    Args:
        folder: new or empty.
        repo: `user/name` on the Hub.
        located: the SAEs to publish.
        results: results of any SAEs; the card compares with those of others.
        licence: licence of the weights, in the Hub's spelling.
        force: publish SAEs that have no results, or are untrained, with a warning on the card.
        kept: id -> results of the SAEs that the repository holds already; the card keeps them.

    Returns:
        The card's entries of the SAEs published now.

    Raises:
        UsageError: an SAE has no results or is untrained, and `force` is not given.
    """
    kept = kept or {}
    boards = make_boards([*results, *(result for of_sae in kept.values() for result in of_sae)])
    saes: list[CardEntry] = []
    warnings: list[str] = []
    for sae in located:
        of_sae = _newest(result for result in results if weight_hash_of(result) == sae.weight_hash)
        problem = _why_not_to_publish(of_sae)
        if problem and not force:
            mend = "; score it first, by python -m eval_runners suite with the same --sae, --train and --seeds"
            raise UsageError(f"{sae.label} is {problem}{'' if of_sae else mend}; --force publishes it all the same")
        if problem:
            warnings.append(f"{sae.label} is {problem}.")
        saes.append(_entry_of(sae, of_sae))
    if len({sae.id for sae in saes}) < len(saes):
        saes = [replace(sae, id=f"{sae.id}-{str(sae.weight_hash)[:6]}") for sae in saes]
    for sae, entry in zip(located, saes, strict=True):
        copy_sae(sae.folder, folder / entry.id, entry.row.all_results)
    new = {sae.id for sae in saes}
    others = [_kept_entry(sae_id, of_sae) for sae_id, of_sae in kept.items() if sae_id not in new]
    (folder / "README.md").write_text(render_card(repo, saes, boards, licence, " ".join(warnings), others))
    return saes


def _newest(results: Iterable[Result]) -> list[Result]:
    """The newest result of each evaluation, without those by other evaluation seeds."""
    by_seed_0 = (result for result in results if not eval_seed_of(result))
    return list({result["eval_type_id"]: result for result in sorted(by_seed_0, key=written_at)}.values())


def _why_not_to_publish(results: Sequence[Result]) -> str:
    reasons = [reason for result in results for reason in result[UNSTRUCTURED]["not_trained_because"]]
    if reasons:
        return f"untrained: {'; '.join(dict.fromkeys(reasons))}"
    return "" if results else "without any result"


def _results_by_type(results: Iterable[Result]) -> dict[str, list[Result]]:
    return {result["eval_type_id"]: [result] for result in results}


def _kept_entry(sae_id: str, results: Sequence[Result]) -> CardEntry:
    """The card's entry of an SAE that the repository holds already, from its results alone."""
    first = results[0] if results else {}
    provenance, cfg = provenance_of(first), first.get("sae_cfg_dict") or {}
    label = str(first.get("sae_lens_id")) if first else sae_id
    row = Row(label, cfg.get("d_sae"), provenance.get("training_tokens"), _results_by_type(results))
    return CardEntry(
        id=sae_id,
        label=label,
        name=row.name.replace(":", "-"),
        model=first["eval_config"].get("model_name") if first else None,
        hook_name=provenance.get("hook_name") or "-",
        seed=provenance.get("seed"),
        weight_hash=provenance.get("weight_hash"),
        row=row,
        architecture=cfg.get("architecture") or "",
        is_stock=_is_stock(cfg.get("architecture")),
    )


def _is_stock(architecture: str | None) -> bool:
    """Whether an architecture is SAELens' own."""
    from sae_lens.registry import SAE_CLASS_REGISTRY

    known = SAE_CLASS_REGISTRY.get(architecture or "")
    return known is not None and known[0].__module__.startswith("sae_lens.")


def _entry_of(located: LocatedSAE, results: Sequence[Result]) -> CardEntry:
    """The card's entry of an SAE that is published now."""
    sae = located.load("cpu")
    metadata = sae.cfg.metadata
    row = Row(located.label, sae.cfg.d_sae, located.training_tokens, _results_by_type(results))
    hook_name = metadata.hook_name or "hook"
    l0 = f"-L0-{row.l0:.0f}" if row.l0 else ""
    seed = f"-seed{located.seed}" if located.seed is not None else ""
    # fields that differ from the recipe are no part of a file's name, but give the SAE another folder than the recipe's
    kind = f"-{(located.kind or located.weight_hash)[:6]}" if "[" in located.label else ""
    name = located.label.partition("[")[0].replace(":", "-").replace("/", "-")
    return CardEntry(
        id=f"{hook_name}-{name}-{sae.cfg.d_sae}{l0}{seed}{kind}",
        label=located.label,
        name=name,
        model=metadata.model_name,
        hook_name=hook_name,
        d_in=sae.cfg.d_in,
        seed=located.seed,
        weight_hash=located.weight_hash,
        architecture=sae.cfg.architecture(),
        is_stock=_is_stock(sae.cfg.architecture()),
        row=row,
    )


def copy_sae(source: Path, folder: Path, results: Iterable[Result]) -> None:
    """Copy an SAE in SAELens' layout, and write its results, without any path of this machine.

    Args:
        source: holds the SAE, and the record of its training where there is one.
        folder: is created.
        results: of the SAE.
    """
    (folder / "results").mkdir(parents=True)
    for name in COPIED:
        if (source / name).is_file():
            shutil.copyfile(source / name, folder / name)
    record = next((source / name for name in (RECORD, "runner_cfg.json") if (source / name).is_file()), None)
    contents = {"cfg.json": json.loads((source / "cfg.json").read_text())}
    if record:
        contents["runner_cfg.json"] = json.loads(record.read_text())
    contents |= {f"results/{result['eval_type_id']}.json": result for result in results}
    for name, content in contents.items():
        (folder / name).write_text(json.dumps(without_paths(content), indent=2) + "\n")
    if without_paths(contents["cfg.json"]) == contents["cfg.json"]:
        shutil.copyfile(source / "cfg.json", folder / "cfg.json")  # results refer to the hash of these bytes


def print_published(headline: str, saes: Sequence[CardEntry], repo: str) -> None:
    """Print how to load the SAEs, and the entry that makes the repository a release that SAELens knows.

    Args:
        headline: printed first.
        saes: the SAEs that are published.
        repo: `user/name` on the Hub.
    """
    import yaml

    print(headline)
    for sae in saes:
        print(f"  {sae.id}: SAE.from_pretrained({repo!r}, {sae.id!r}), or --sae {repo}:{sae.id}")
    entries = []
    for sae in saes:
        core = {metric.key: sae.row.number(Column("core", metric)) for metric in metrics_of("core")}
        numbers = {"l0": core["l0"], "variance_explained": core["explained_variance_corrected"]}
        known = {field: round(number[0], 3) for field, number in numbers.items() if number}
        entries.append({"id": sae.id, "path": sae.id, **known})
    release = {"model": saes[0].model, "repo_id": repo, "conversion_func": None, "saes": entries}
    print("\nFor SAELens' pretrained_saes.yaml:\n")
    print(yaml.safe_dump({repo.replace("/", "-"): release}, sort_keys=False).strip())
