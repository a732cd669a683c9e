"""Steps of `topk` on random activations, in one process or in the processes of a torchrun: what the tests compare.

    torchrun --nproc-per-node R sharded_worker.py FOLDER SHARDS STEPS FIELDS

Continues from the checkpoint in the folder if there is one, writes one after the last step, and saves the SAE if that is
the last step of the training. FIELDS are overrides in JSON. The first process writes, to
result.json, for every process the losses, the latents that fired in the last step, and the bytes that it sent.
"""

from __future__ import annotations

import json
import sys
import warnings
from pathlib import Path

import torch

D_IN, BATCH, STEPS = 24, 96, 50
FIELDS = {"d_sae": 96, "k": 4, "k_aux": 8, "training_tokens": BATCH * STEPS, "batch_tokens": BATCH, "stream_window": 8}
RANDOM = {"aux_every": 2, "normalize_activations": "none", "dead_after_tokens": 6 * BATCH}


def make_batches() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(8)
    directions = torch.randn(40, D_IN, generator=generator)
    active = torch.rand(STEPS, BATCH, 40, generator=generator).pow(12)
    return list(2 + active @ directions)


def run(folder: Path, shards: int | None, last: int, fields: dict) -> dict:
    from sae_variants.language_model.target import load_target
    from sae_variants.sharded.job import ShardedJob, make_sharded_trainer
    from sae_variants.sharded.ranks import join_ranks
    from sae_variants.training.job import Job
    from sae_variants.training.plan import make_plan
    from sae_variants.training.trainer import make_trainer
    from sae_variants.training.windows import Batch

    plan = make_plan("topk", load_target("sandbox"), {**FIELDS, **RANDOM, **fields}, folder)
    if shards is None:
        job = Job(plan, make_trainer(plan, D_IN, "cpu"))
    else:
        job = ShardedJob(plan, make_sharded_trainer(plan, D_IN, join_ranks(shards, "cpu")))
    job.resume()
    batches, output = make_batches(), None
    losses, dead = [], []
    train_step = job.trainer.step

    def step(acts: torch.Tensor):
        nonlocal output
        output = train_step(acts)
        losses.append(output.loss.item())
        dead.append(output.metrics["dead"]())
        return output

    job.trainer.step = step
    nothing_N = torch.zeros(BATCH, dtype=torch.bool)
    for acts in batches[job.at : last]:
        job.step(Batch(acts, nothing_N, nothing_N.long()))
    assert output is not None
    own = job.trainer.sae.shards.index * job.trainer.sae.cfg.d_sae if shards else 0
    fired_NS = output.feature_acts.to_dense() > 0
    fired = sorted((int(n), int(s) + own) for n, s in fired_NS.nonzero().tolist())
    if job.is_done:
        job.finish()
    else:
        job.save_checkpoint()
    sent = dict(job.trainer.sae.shards.sent) if shards else {}
    return {"losses": losses, "dead": dead, "fired": fired, "sent": sent, "folder": str(plan.folder)}


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    folder, shards, last, fields = sys.argv[1:]
    result = run(Path(folder), int(shards), int(last), json.loads(fields))
    import torch.distributed as dist

    results = [None] * dist.get_world_size()
    dist.all_gather_object(results, result)
    if dist.get_rank() == 0:
        (Path(folder) / "result.json").write_text(json.dumps(results))
    dist.destroy_process_group()
