"""Which share of a job a process does: `i/n` on the command line, one process a GPU or an array element."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass

from autointerp.errors import UserError


@dataclass(frozen=True, slots=True)
class Shard:
    """Share `index` (from 0) of `count`. Shares are contiguous, and as equal as whole pieces allow."""

    index: int = 0
    count: int = 1

    @classmethod
    def parse(cls, text: str) -> Shard:
        """From `0/4` to `3/4`.

        Raises:
            UserError: it is no such share.
        """
        found = re.fullmatch(r"(\d+)/(\d+)", text.strip())
        if not found or int(found.group(1)) >= int(found.group(2)):
            raise UserError(f"--shard '{text}' is no share: four processes are 0/4, 1/4, 2/4 and 3/4")
        return cls(int(found.group(1)), int(found.group(2)))

    @property
    def whole(self) -> bool:
        return self.count == 1

    def of(self, n: int) -> range:
        """This share of `n` pieces in a row."""
        return range(self.index * n // self.count, (self.index + 1) * n // self.count)

    @property
    def label(self) -> str:
        """For names of files and folders."""
        return f"{self.index}-of-{self.count}"

    def __str__(self) -> str:
        return f"{self.index}/{self.count}"


WHOLE = Shard()


def slurm_job() -> str:
    """The job that this process is of, as Slurm calls it: 17, or 17_3 of an array; empty elsewhere."""
    array, task = os.environ.get("SLURM_ARRAY_JOB_ID"), os.environ.get("SLURM_ARRAY_TASK_ID")
    return f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID", "")
