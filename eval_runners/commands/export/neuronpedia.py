"""python -m eval_runners export neuronpedia FOLDER --sae NAME: dashboards of an SAE's latents for Neuronpedia.

    FOLDER/<model>/<layer>-<set>/release.jsonl, model.jsonl, sourceset.jsonl, source.jsonl
    FOLDER/<model>/<layer>-<set>/features/batch-<n>.jsonl.gz, activations/batch-<n>.jsonl.gz

FOLDER has the layout of the folder `v1` of Neuronpedia's data sets, from which a Neuronpedia imports by model and
source. For each latent: its firing rate, the tokens whose logits it raises and lowers, histograms of activations and
logits, the channels it writes to, the contexts of its largest activations, and some from five intervals of the
activation. The definitions are those of SAEDashboard. Neurons and latents that correlate with it are left out.

The same command after an interruption goes on: files that are there are kept.
"""

from __future__ import annotations

import json
from argparse import Namespace
from dataclasses import replace
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from eval_runners.harness.find_sae import check_requests, locate_all, resolve_requests
from eval_runners.harness.fit import check_context_early, load_for_target
from eval_runners.harness.options import parse_with_overrides
from eval_runners.harness.target_model import model_loader, require_source
from eval_runners.store.paths import without_paths
from eval_runners.views.neuronpedia import (
    MODEL_ID,
    SET_NAME,
    Source,
    activation_rows,
    feature_row,
    layer_of,
    metadata_rows,
    slug,
    to_gzip,
    to_jsonl,
)
from sae_variants.cli.options import (
    Parser,
    add_target_options,
    device_from,
    parse_positive,
    parse_whole,
    target_from,
)
from sae_variants.common.console import hide_host_warnings, progress
from sae_variants.common.errors import UsageError
from sae_variants.common.files import check_folder_writable, write_atomically
from sae_variants.language_model.folders import is_local_model

if TYPE_CHECKING:
    from eval_runners.contract.located import LocatedSAE
    from sae_variants.language_model.target import Target

RECORD = "export.json"
"""File beside Neuronpedia's that says what the others were computed from."""
CREATOR = "clkht01d40000jv08hvalcvly"
"""Id of the user that a Neuronpedia of one's own begins with, SAEDashboard's default too."""


def main(argv: list[str]) -> int:
    """Write the files that are missing.

    Raises:
        UsageError: anything that cannot work, before any SAE is trained where it can be known.
    """
    args, overrides = parse_with_overrides(_parser(), argv)
    if len(args.sae) > 1:
        raise UsageError("--sae is given once: an export holds one SAE")
    root = check_folder_writable(Path(args.folder), "FOLDER")
    hide_host_warnings()
    target = target_from(args)
    require_source("export neuronpedia", target)
    layer_of(target.hook_name)
    _check_names(args)
    check_requests(args.sae, target, overrides, seeds=[args.seed])
    check_context_early(target, args)
    device = device_from(args)
    (located,) = locate_all(resolve_requests(args.sae, target, overrides, [{}], [args.seed], args.trained), device)
    source, record = _source(args, located, target), _record(args, located, target)
    folder = root / source.folder
    source = replace(source, created=_check_record(folder, record, source))
    d_sae = json.loads((located.folder / "cfg.json").read_text())["d_sae"]
    starts = range(0, d_sae, args.latents_per_file)
    missing = [start for start in starts if not _files(folder, start, args)[0].exists()]
    if missing or not (folder / "source.jsonl").exists():
        _write_missing(args, located, target, device, source, folder, record, missing)
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    kept = f", {len(starts) - len(missing)} of them kept" if len(missing) < len(starts) else ""
    print(f"{folder}: {d_sae} latents in {len(starts)} files{kept}, {size / 2**20:.1f} MiB")
    return 0


def _write_missing(
    args: Namespace,
    located: LocatedSAE,
    target: Target,
    device: str,
    source: Source,
    folder: Path,
    record: dict[str, Any],
    missing: list[int],
) -> None:
    """Describe the latents of the files that are missing, and write these files."""
    from eval_runners.measures.firing import collect_firing
    from eval_runners.measures.latent_dashboard import DashboardMaker

    model = model_loader(target, device)()
    sae = load_for_target(located, target, model, device, args.context_size)
    write_atomically(folder / RECORD, json.dumps(record | {"created": source.created}, indent=2) + "\n", "FOLDER")
    firing = collect_firing(sae, target, model, args.n_contexts, args.context_size)
    columns = {
        "dimension": model.cfg.d_model,
        "layers": model.cfg.n_layers,
        "neuronsPerLayer": model.cfg.d_mlp or 0,
        "tlensId": None if is_local_model(target.model_name) else target.model_name,
    }
    cfg = without_paths(json.loads((located.folder / "cfg.json").read_text()))
    notes = f"sae-variants {version('sae-variants')}, weights {located.weight_hash}"
    rows = metadata_rows(
        source, located.title, columns, cfg, target.text_id, len(firing.ids_CT), args.context_size, notes
    )
    for name, row in rows.items():
        write_atomically(folder / name, to_jsonl([row]), "FOLDER")
    maker = DashboardMaker(sae, model, firing, args.seed)
    for start in progress(missing, "files"):
        latents = maker.describe(range(start, min(start + args.latents_per_file, sae.cfg.d_sae)))
        examples = [
            row for latent in latents for row in activation_rows(source, latent, maker.texts, record["weights"])
        ]
        features, activations = _files(folder, start, args)
        if examples:  # the import cannot read a file without rows
            write_atomically(activations, to_gzip(examples), "FOLDER")
        write_atomically(features, to_gzip(feature_row(source, latent) for latent in latents), "FOLDER")


def _files(folder: Path, start: int, args: Namespace) -> tuple[Path, Path]:
    """The files of the latents from `start` on, and of their examples. The former is written last."""
    name = f"batch-{start // args.latents_per_file}.jsonl.gz"
    return folder / "features" / name, folder / "activations" / name


def _check_names(args: Namespace) -> None:
    if args.model_id is not None and not MODEL_ID.fullmatch(args.model_id):
        raise UsageError(f"--model-id is lower-case letters, digits, dashes and underscores, not {args.model_id!r}")
    if args.set_name is not None and not SET_NAME.fullmatch(args.set_name):
        raise UsageError(
            "--set-name is lower-case letters, digits, dashes and single underscores, with at least one letter, not "
            f"{args.set_name!r}"
        )


def _source(args: Namespace, located: LocatedSAE, target: Target) -> Source:
    """The names of the SAE, as the options or its own label give them; without a time."""
    seed = "" if located.seed is None else f"-seed{located.seed}"
    return Source(
        model_id=args.model_id or slug(target.model_name.split("/")[-1].partition("@")[0]),
        layer=layer_of(target.hook_name),
        set_name=args.set_name or slug(f"{located.label}{seed}"),
        creator_name=args.creator_name,
        creator_id=args.creator_id,
        created="",
    )


def _record(args: Namespace, located: LocatedSAE, target: Target) -> dict[str, Any]:
    """What the files depend on, their names aside."""
    return {
        "weights": located.weight_hash,
        "text": target.text_id,
        "creator": [args.creator_name, args.creator_id],
        "n_contexts": args.n_contexts,
        "context_size": args.context_size,
        "latents_per_file": args.latents_per_file,
        "seed": args.seed,
        "version": version("sae-variants"),
    }


def _check_record(folder: Path, record: dict[str, Any], source: Source) -> str:
    """Check that a folder holds no other export.

    Returns:
        When the export that it holds was begun, or now.

    Raises:
        UsageError: names what differs.
    """
    file = folder / RECORD
    if not file.exists():
        if folder.exists() and any(folder.iterdir()):
            raise UsageError(f"{folder} holds other files: give another FOLDER, or another --set-name")
        return datetime.now(UTC).isoformat(timespec="seconds")
    try:
        held = json.loads(file.read_text())
        created = held.pop("created")
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(f"{file} is no record of an export: delete {folder}, or give another FOLDER") from error
    if differing := [name for name in record if held.get(name) != record[name]]:
        raise UsageError(
            f"{folder} holds an export of {source.id} with another {', '.join(differing)}: delete it, or give another "
            "FOLDER or --set-name"
        )
    return created


def _parser() -> Parser:
    parser = Parser(prog="python -m eval_runners export neuronpedia", description=__doc__)
    parser.add_argument("folder", metavar="FOLDER", help="Folder to write to.")
    parser.add_argument(
        "--sae",
        required=True,
        action="append",
        metavar="NAME",
        help="A variant, stock:ARCHITECTURE, a folder, or user/repo:sae_id on the Hub.",
    )
    parser.add_argument(
        "--model-id", metavar="ID", help="Name of the language model on Neuronpedia (default: the model's own)."
    )
    parser.add_argument("--set-name", metavar="NAME", help="Name of the set of SAEs (default: the SAE's label).")
    parser.add_argument("--creator-name", default="unknown", metavar="NAME", help="Author (default: %(default)s).")
    parser.add_argument(
        "--creator-id", default=CREATOR, metavar="ID", help="Id of a user of that Neuronpedia (default: %(default)s)."
    )
    parser.add_argument(
        "--n-contexts",
        type=parse_positive,
        default=2048,
        help="Held-out contexts to read (default: %(default)s).",
    )
    parser.add_argument(
        "--context-size", type=parse_positive, default=128, help="Tokens in a context (default: %(default)s)."
    )
    parser.add_argument(
        "--latents-per-file", type=parse_positive, default=128, help="Latents in a file (default: %(default)s)."
    )
    parser.add_argument(
        "--seed", type=parse_whole, default=0, help="Seed of a variant and of the sampled examples (default: 0)."
    )
    add_target_options(parser)
    parser.epilog = "A variant that is not trained yet is trained first; --train.FIELD VALUE sets its config fields."
    return parser
