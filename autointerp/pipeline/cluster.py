"""Whether a job fits into a cluster, on paper: tokens that were counted, over speeds that were given or assumed.

Nothing here was measured on a GPU. Every speed is the user's, or an assumption that is printed as one.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from autointerp.errors import UserError
from autointerp.pipeline.cost import HERE, StageCost
from autointerp.progress import clock

ASSUMED = {"tokens_per_second": 2_000.0, "subject_tokens_per_second": 20_000.0}
"""Of one GPU: tokens of prompt and answer of the model that is asked, and tokens that the subject model reads. Round
numbers on the careful side, of no measurement."""


@dataclass(frozen=True)
class Cluster:
    gpus: int
    kind: str
    hours: float
    speeds: dict[str, float]
    """Those that were given; the others are assumed."""

    @classmethod
    def parse(cls, text: str) -> Cluster:
        """`8xH100,hours=24`, with speeds as `tokens_per_second=5000` behind it.

        Raises:
            UserError: it is no such text.
        """
        first, *rest = (part.strip() for part in text.split(","))
        found = re.fullmatch(r"(\d+)\s*x\s*(\S+)", first)
        numbers: dict[str, float] = {}
        for part in rest:
            name, _, value = part.partition("=")
            try:
                numbers[name.strip()] = float(value)
            except ValueError:
                found = None
        hours = numbers.pop("hours", 0.0)
        if (
            not found
            or int(found[1]) < 1
            or hours <= 0
            or numbers.keys() - ASSUMED
            or min(numbers.values(), default=1) <= 0
        ):
            raise UserError(f"--cluster '{text}' is none: 8xH100,hours=24, and maybe {'=..., '.join(ASSUMED)}=...")
        return cls(int(found[1]), found[2], hours, numbers)

    @property
    def gpu_hours(self) -> float:
        return self.gpus * self.hours

    def speed(self, name: str) -> tuple[float, str]:
        """Tokens a second of one GPU, and where the number comes from."""
        if name in self.speeds:
            return self.speeds[name], "as you say"
        return ASSUMED[name], f"assumed, not measured: give {name}=..."


def speed_of(stage: StageCost) -> str:
    """The name of the speed that a stage's tokens take."""
    return "subject_tokens_per_second" if stage.asks == HERE else "tokens_per_second"


def needed(stage: StageCost, cluster: Cluster) -> float:
    """GPU-hours, with answers as long as they mostly are."""
    speed, _ = cluster.speed(speed_of(stage))
    return (stage.prompt_tokens + stage.completion_tokens[1]) / speed / 3600


def fits(stages: Sequence[StageCost], cluster: Cluster) -> list[str]:
    """What fits, in lines."""
    lines = [f"cluster: {cluster.gpus} x {cluster.kind} for {cluster.hours:g} h, {cluster.gpu_hours:,.0f} GPU-hours"]
    for name in dict.fromkeys(speed_of(stage) for stage in stages):
        speed, source = cluster.speed(name)
        lines.append(f"  {name}: {speed:,.0f} for one GPU ({source})")
    hours = {stage.stage: needed(stage, cluster) for stage in stages}
    for stage in stages:
        tokens = stage.prompt_tokens + stage.completion_tokens[1]
        lines.append(f"  {stage.stage}: {tokens:,} tokens, {hours[stage.stage]:,.2f} GPU-hours")
    total = sum(hours.values())
    by_latent = [stage for stage in stages if stage.stage != "collect"]
    fixed = hours.get("collect", 0.0)
    if total <= cluster.gpu_hours:
        wall = clock(3600 * total / cluster.gpus)
        lines.append(f"  it fits: {total / cluster.gpu_hours:.1%} of the GPU-hours, {wall} when all GPUs are busy")
    elif not by_latent or fixed >= cluster.gpu_hours:
        lines.append(f"  it does not fit: collecting alone takes {fixed:,.1f} GPU-hours; lower data.tokens")
    else:
        n = by_latent[0].units
        least = int(n * (cluster.gpu_hours - fixed) / (total - fixed))
        lines.append(f"  it does not fit: {least:,} of {n:,} latents do; --limit {least}")
    return lines
