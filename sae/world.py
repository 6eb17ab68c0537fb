"""The processes that train together: one alone, or those that `torchrun` started (gloo or nccl)."""

from __future__ import annotations

import os
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True, slots=True)
class World:
    """This process's place among `size` that share every batch."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0

    @classmethod
    def join(cls, device: str = "cpu") -> World:
        """Join the group that `torchrun` describes in the environment; without one, be alone."""
        if int(os.environ.get("WORLD_SIZE", "1")) <= 1:
            return cls()
        import torch.distributed as dist

        if not dist.is_initialized():
            dist.init_process_group("nccl" if device.startswith("cuda") else "gloo")
        return cls(dist.get_rank(), dist.get_world_size(), int(os.environ.get("LOCAL_RANK", "0")))

    @property
    def leads(self) -> bool:
        """Whether this process writes files and speaks."""
        return self.rank == 0

    def total(self, x: Tensor) -> Tensor:
        """Sum over all processes."""
        if self.size == 1:
            return x
        import torch.distributed as dist

        summed = x.detach().clone().contiguous()
        dist.all_reduce(summed)
        return summed

    def largest(self, x: Tensor) -> Tensor:
        """Elementwise maximum over all processes."""
        if self.size == 1:
            return x
        import torch.distributed as dist

        found = x.detach().clone().contiguous()
        dist.all_reduce(found, op=dist.ReduceOp.MAX)
        return found

    def total_in_place(self, x: Tensor) -> None:
        if self.size > 1:
            import torch.distributed as dist

            dist.all_reduce(x)

    def from_first(self, x: Tensor) -> None:
        """Take the first process's values."""
        if self.size > 1:
            import torch.distributed as dist

            dist.broadcast(x.detach(), src=0)

    def wait(self) -> None:
        """Until every process has come here."""
        if self.size > 1:
            import torch.distributed as dist

            dist.barrier()

    def leave(self) -> None:
        """Say goodbye, so that no process hangs at the end of another."""
        if self.size > 1:
            import torch.distributed as dist

            dist.destroy_process_group()


ALONE = World()
