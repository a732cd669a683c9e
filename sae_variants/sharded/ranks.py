"""The processes of a torchrun: which shard of the latents and which group of the tokens each has.

Rank r of R has shard r mod S of the latents and group r div S of the tokens; there are R / S groups. The latents of a
shard are consecutive. Collectives are those of torch.distributed, over gloo on CPUs and NCCL on CUDA devices.

Shapes: C contexts, T tokens in a context, D = d_in.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any

from sae_variants.common.errors import UsageError
from sae_variants.language_model.hooks import CONTEXTS_PER_PASS

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from torch.distributed.device_mesh import DeviceMesh

WORLD, RANK, LOCAL_RANK = "WORLD_SIZE", "RANK", "LOCAL_RANK"
"""Environment variables with the number of processes, that of this one, and its number on its host: torchrun's."""
SET_BY_TORCHRUN = (WORLD, RANK, LOCAL_RANK, "MASTER_ADDR", "MASTER_PORT")
"""Environment variables without which the processes cannot meet; schedulers and users set some of them alone."""
TOKENS, LATENTS, ALL = "tokens", "latents", "all"
"""Dimensions of the mesh of processes, and both."""
PATIENCE = timedelta(minutes=30)
"""How long a process waits for the others, such as for one that writes a large SAE."""


def is_torchrun() -> bool:
    """Return whether torchrun started this process."""
    return all(name in os.environ for name in SET_BY_TORCHRUN)


def is_first_process() -> bool:
    """Return whether this is the process that prints, the only one without torchrun."""
    return os.environ.get(RANK, "0") == "0"


def check_shards(shards: int | None) -> int:
    """Return the number of shards that --shards asks for, by default one for each process.

    Raises:
        UsageError: There is no torchrun, its numbers are none, or its processes cannot be shared out.
    """
    if not is_torchrun():
        raise UsageError(
            f"--shards {shards} needs several processes: torchrun --nproc-per-node {shards} -m sae_variants train ..."
        )
    for name in (WORLD, RANK, LOCAL_RANK):
        if not os.environ[name].isdecimal():
            raise UsageError(f"the environment variable {name} must be a whole number, not {os.environ[name]!r}")
    world = int(os.environ[WORLD])
    shards = shards or world
    if world % shards:
        raise UsageError(f"--shards {shards} does not divide the {world} processes of torchrun")
    return shards


@dataclass(frozen=True)
class Ranks:
    """This process among the others."""

    rank: int
    """Its number."""
    mesh: DeviceMesh
    """All processes: groups of tokens by shards of latents."""
    device: str
    """Its device."""

    @property
    def is_first(self) -> bool:
        """Whether it is the process that prints and moves files."""
        return self.rank == 0

    @property
    def shards(self) -> int:
        """Number of shards of the latents."""
        return self.mesh.size(1)

    @property
    def groups(self) -> int:
        """Number of groups of tokens."""
        return self.mesh.size(0)

    def wait(self) -> None:
        """Wait until every process is here."""
        import torch.distributed as dist

        dist.barrier()

    def agree(self, value: Any) -> Any:
        """Return the first process's value in all of them."""
        import torch.distributed as dist

        values = [value]
        dist.broadcast_object_list(values, src=0, device=self.mesh.device_type)  # type: ignore[arg-type]
        return values[0]

    def of_all(self, value: Any) -> list[Any]:
        """Return the values of all processes, by rank."""
        import torch.distributed as dist

        values = [value] * self.mesh.size()
        dist.all_gather_object(values, value)
        return values

    @property
    def on_device(self) -> int:
        """Number of processes that share the memory of this one's device."""
        return int(os.environ.get("LOCAL_WORLD_SIZE", "1")) if self.device == "cpu" else 1

    def refuse_together(self, check: Callable[[], None]) -> None:
        """Run a check in every process, and raise the first UsageError of any of them in all."""
        reason = ""
        try:
            check()
        except UsageError as error:
            reason = str(error)
        if refusal := next(filter(None, self.of_all(reason)), None):
            raise UsageError(refusal)

    def share_passes(
        self, activations: Callable[[Tensor], Tensor], d_in: int, dtype: torch.dtype
    ) -> Callable[[Tensor], Tensor]:
        """Return the same activations [C, T, D] of contexts [C, T], a part of whose passes each process runs."""
        import torch
        import torch.distributed as dist

        def shared(ids_CT: Tensor) -> Tensor:
            passes = ids_CT.split(CONTEXTS_PER_PASS)
            own = {number: activations(passes[number]) for number in range(self.rank, len(passes), self.mesh.size())}
            parts = []
            for number, part in enumerate(passes):
                acts = own.get(number)
                acts = torch.empty(*part.shape, d_in, dtype=dtype, device=self.device) if acts is None else acts
                dist.broadcast(acts, src=number % self.mesh.size())
                parts.append(acts)
            return torch.cat(parts)

        return shared


def join_ranks(shards: int, device: str) -> Ranks:
    """Join the other processes of the torchrun, once.

    Args:
        shards: Shards of the latents; they divide the number of processes.
        device: `cpu`, or `cuda` for the device of this process's local rank.
    """
    import torch
    import torch.distributed as dist
    from torch.distributed.device_mesh import init_device_mesh

    kind = device.partition(":")[0]
    if kind == "cuda":
        device = f"cuda:{os.environ[LOCAL_RANK]}"
        torch.cuda.set_device(device)
    if not dist.is_initialized():
        dist.init_process_group("nccl" if kind == "cuda" else "gloo", timeout=PATIENCE)
    mesh = init_device_mesh(kind, (dist.get_world_size() // shards, shards), mesh_dim_names=(TOKENS, LATENTS))
    return Ranks(dist.get_rank(), mesh, device)
