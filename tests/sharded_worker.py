"""Steps of SAEs on random activations, in one process or in the processes of a torchrun: what the tests compare.

    torchrun --nproc-per-node R sharded_worker.py FOLDER SHARDS STEPS FIELDS

FIELDS are overrides by the name of a variant, in JSON; the variants are trained one after another. Each continues from
the checkpoint in the folder if there is one, writes one after the last step, and is saved if that is the last step of its
training. The first process writes, to result.json, for every variant and every process the losses, the latents that
fired in the last step, the slow activations of windows that are not zero in each step, and the bytes that it gave in the
steps; as `ties`, which of equal values each process keeps; and, as `refused`, what each one says if only the last one
refuses.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

from sae_variants.training.windows import Batch

D_IN, BATCH, STEPS = 24, 96, 50
WINDOW, CONTEXTS, TIES_KEPT = 8, 5, 6
FIELDS = {"d_sae": 96, "k": 4, "training_tokens": BATCH * STEPS, "batch_tokens": BATCH, "stream_window": WINDOW}
RANDOM = {"normalize_activations": "none", "dead_after_tokens": 6 * BATCH}
OF_VARIANT = {
    "topk": {"k_aux": 8, "aux_every": 2},
    "temporal": {"window": 4, "slow_fraction": 0.1, "learning_rate": 0.01},
    "refined": {"refine": 2, "learning_rate": 0.01},
}


def make_batches() -> list[Batch]:
    """Activations of windows, some of which have a special token; several are of one context."""
    generator = torch.Generator().manual_seed(8)
    directions = torch.randn(40, D_IN, generator=generator)
    active = torch.rand(STEPS, BATCH, 40, generator=generator).pow(12)
    lasting = torch.rand(STEPS, BATCH // WINDOW, 40, generator=generator).pow(20).repeat_interleave(WINDOW, 1)
    special = torch.rand(STEPS, BATCH, generator=generator) < 0.02
    context = torch.randint(CONTEXTS, (STEPS, BATCH // WINDOW), generator=generator).repeat_interleave(WINDOW, 1)
    return [Batch(*rows) for rows in zip(2 + (active + lasting) @ directions, special, context, strict=True)]


def run(name: str, folder: Path, shards: int | None, last: int, fields: dict) -> dict:
    from sae_variants.language_model.target import load_target
    from sae_variants.sharded.job import ShardedJob, make_sharded_trainer
    from sae_variants.sharded.ranks import join_ranks
    from sae_variants.training.job import Job
    from sae_variants.training.plan import make_plan
    from sae_variants.training.trainer import make_trainer

    plan = make_plan(name, load_target("sandbox"), {**FIELDS, **RANDOM, **OF_VARIANT[name], **fields}, folder)
    if shards is None:
        job = Job(plan, make_trainer(plan, D_IN, "cpu"))
    else:
        job = ShardedJob(plan, make_sharded_trainer(plan, D_IN, join_ranks(shards, "cpu")))
    job.resume()
    batches, output, here = make_batches(), None, job.trainer.sae.shards
    losses, dead = [], []
    codes: list[int] = []
    if shards is not None:
        of_all_groups = here.of_all_groups
        here.of_all_groups = lambda own: codes.append(int(own.count_nonzero())) or of_all_groups(own)
    train_step = job.trainer.step

    def step(acts: torch.Tensor):
        nonlocal output
        output = train_step(acts)
        losses.append(output.loss.item())
        is_dead_S = here.least(job.trainer.dead_neurons.float())
        dead.append(float(here.over_latents(is_dead_S.mean()) / here.count))
        return output

    job.trainer.step = step
    job.last_batches = [batch.acts_ND for batch in batches[-job.calibration_batches :]]
    for batch in batches[job.at : last]:
        job.step(batch)
    assert output is not None
    own, sent = here.index * job.trainer.sae.cfg.d_sae, dict(getattr(here, "sent", {}))
    fired_NS = output.feature_acts.to_dense() > 0
    fired = sorted((int(n), int(s) + own) for n, s in fired_NS.nonzero().tolist())
    if job.is_done:
        job.finish()
    else:
        job.save_checkpoint()
    return {"losses": losses, "dead": dead, "fired": fired, "codes": codes, "sent": sent, "folder": str(plan.folder)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, shards, last, fields = sys.argv[1:]
    runs = json.loads(fields).items()
    own = {name: run(name, Path(folder), int(shards), int(last), changed) for name, changed in runs}
    import torch.distributed as dist

    from sae_variants.common.errors import UsageError
    from sae_variants.sharded.latents import LatentShards
    from sae_variants.sharded.ranks import join_ranks

    ranks, ties = join_ranks(int(shards), "cpu"), torch.tensor([1.0, 2.0, -0.0, 2.0, 2.0, 3.0])
    own["ties"] = LatentShards(ranks).top_k_mask(ties, TIES_KEPT).int().tolist()

    def refuse() -> None:
        if ranks.rank == ranks.mesh.size() - 1:
            raise UsageError("too large here")

    try:
        ranks.refuse_together(refuse)
    except UsageError as error:
        own["refused"] = str(error)
    every: list = [None] * dist.get_world_size()
    dist.all_gather_object(every, own)
    results = {name: [of_rank[name] for of_rank in every] for name in own}
    if dist.get_rank() == 0:
        (Path(folder) / "result.json").write_text(json.dumps(results))
    dist.destroy_process_group()
