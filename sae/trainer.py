"""Train one dictionary on activations that lie in memory or in a memory-mapped array.

Resumes bit for bit: batches come from permutations seeded by (seed, epoch), and a checkpoint holds
weights, optimiser and counters. Knows nothing of language models; `activations` is any [N, D] array.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae.base import SparseAutoencoder
from sae.errors import Diverged, SAEError
from sae.training import StepResult, normalise_decoder, project_gradient

LARGEST_LOSS = 1e4


class Trainable(Protocol):
    """What an architecture needs beyond inference to be trained here."""

    def step(self, x: Tensor, dead: Tensor | None) -> StepResult: ...


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    batch_size: int = 1024
    """Tokens per step."""
    epochs: int = 4
    """Passes over the activations, each in a new order."""
    lr: float = 1.6e-3
    """Peak learning rate of Adam, divided by sqrt(n_latents / 2^12)."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly."""
    decay_share: float = 0.3
    """Share of the run at the end over which the learning rate falls linearly to zero."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    dead_after: int = 100_000
    """A latent is dead when it has not fired for this many tokens."""
    checkpoint_every: int = 100
    """Steps between checkpoints."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Progress:
    step: int
    n_steps: int
    fvu: float
    l0: float
    dead_share: float


def norm_scale(activations: NDArray[Any], seed: int, sample: int = 8192) -> float:
    """`sqrt(D) / mean ||x||` over a seeded sample of rows (the peers' "expected average" scale)."""
    rng = np.random.default_rng([seed, 1])
    rows = np.sort(rng.choice(len(activations), size=min(sample, len(activations)), replace=False))
    mean_norm = float(np.linalg.norm(activations[rows].astype(np.float32), axis=1).mean())
    if not math.isfinite(mean_norm) or mean_norm == 0:
        raise SAEError(f"the mean norm of the activations is {mean_norm}; nothing can be trained on them")
    return math.sqrt(activations.shape[1]) / mean_norm


class Trainer:
    """Trains `model` in place. `folder` receives `metrics.jsonl` and the checkpoint; None keeps nothing."""

    def __init__(
        self, model: SparseAutoencoder, activations: NDArray[Any], config: TrainConfig, folder: Path | None = None
    ) -> None:
        if len(activations) < config.batch_size:
            raise SAEError(
                f"{len(activations)} tokens are fewer than one batch of {config.batch_size}; "
                "bring more text or a smaller batch size"
            )
        if activations.shape[1] != model.d_in:
            raise SAEError(f"activations are {activations.shape[1]} wide, the SAE reads {model.d_in}")
        self.model, self.activations, self.config, self.folder = model, activations, config, folder
        self.steps_per_epoch = len(activations) // config.batch_size
        self.n_steps = self.steps_per_epoch * config.epochs
        self.scale = norm_scale(activations, config.seed)
        peak = config.lr / math.sqrt(model.n_latents / 2**12)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=peak, betas=(0.9, 0.999), fused=True)
        self.peak_lr = peak
        self.step_done = 0
        self.tokens_since_fired = torch.zeros(model.n_latents, dtype=torch.int64)
        self._epoch = -1
        self._order = np.empty(0, dtype=np.int64)

    def run(self, on_progress: Callable[[Progress], None] | None = None) -> None:
        """Train to the end, from the last checkpoint if there is one, then fold the input scale in."""
        if not self._restore():
            self._start()
        config = self.config
        while self.step_done < self.n_steps:
            self._set_lr()
            result = self._step()
            self.step_done += 1
            last = self.step_done == self.n_steps
            if self.step_done % config.log_every == 0 or last:
                progress = self._report(result)
                if on_progress:
                    on_progress(progress)
            if self.step_done % config.checkpoint_every == 0 or last:
                self._checkpoint()
        self.model.rescale(self.scale)
        self.model.metadata.normalization = {"kind": "expected_average", "scale": self.scale, "folded": True}

    def batch(self, step: int) -> Tensor:
        """The scaled batch of a step, float32 `[batch_size, D]`."""
        epoch, index = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = np.random.default_rng([self.config.seed, 2, epoch]).permutation(len(self.activations))
            self._epoch = epoch
        size = self.config.batch_size
        rows = np.sort(self._order[index * size : (index + 1) * size])
        return torch.from_numpy(self.activations[rows].astype(np.float32)).mul_(self.scale)

    def _start(self) -> None:
        self.model.initialise(self.config.seed)
        with torch.no_grad():
            first = torch.cat([self.batch(step) for step in range(min(8, self.steps_per_epoch))])
            self.model.b_dec.copy_(first.mean(dim=0))
            # Half the tied encoder keeps the first reconstructions from overshooting on correlated directions.
            self.model.encoder.mul_(0.5)
        if self.folder:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "metrics.jsonl").write_text("")

    def _step(self) -> StepResult:
        dead = (self.tokens_since_fired > self.config.dead_after).nonzero()[:, 0]
        trainable: Trainable = self.model  # type: ignore[assignment]
        result = trainable.step(self.batch(self.step_done), dead)
        with torch.no_grad():
            project_gradient(self.model)
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            self.optimiser.step()
            normalise_decoder(self.model)
        self.tokens_since_fired += self.config.batch_size
        self.tokens_since_fired[result.fired > 0] = 0
        return result

    def _set_lr(self) -> None:
        done, config = self.step_done, self.config
        decay_steps = max(1, int(self.n_steps * config.decay_share))
        factor = min(1.0, (done + 1) / max(1, config.warmup_steps), (self.n_steps - done) / decay_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak_lr * factor

    def _report(self, result: StepResult) -> Progress:
        loss = float(result.loss)
        # An SAE that says nothing has a loss of 1; far beyond that no step leads back.
        if not loss < LARGEST_LOSS:
            raise Diverged(f"the loss is {loss:.3g} at step {self.step_done}; {self._advice()}")
        progress = Progress(
            step=self.step_done,
            n_steps=self.n_steps,
            fvu=float(result.fvu),
            l0=float(result.n_active) / self.config.batch_size,
            dead_share=float((self.tokens_since_fired > self.config.dead_after).float().mean()),
        )
        if self.folder:
            line = {**asdict(progress), "loss": loss, "auxk": float(result.auxk), "lr": self._lr()}
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps(line) + "\n")
        return progress

    def _advice(self) -> str:
        kept = self.folder is not None and (self.folder / "checkpoint.safetensors").is_file()
        where = f"the last good checkpoint is in {self.folder}" if kept else "no checkpoint was kept"
        return f"{where}; try a lower learning rate"

    def _lr(self) -> float:
        return float(self.optimiser.param_groups[0]["lr"])

    def _identity(self) -> dict[str, Any]:
        """What a checkpoint has to agree with to be continued."""
        return {
            "architecture": self.model.architecture,
            "sae": self.model.config_dict(),
            "train": asdict(self.config),
            "n_rows": len(self.activations),
            "scale": self.scale,
        }

    def _checkpoint(self) -> None:
        if not self.folder:
            return
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise Diverged(f"a weight is not finite after step {self.step_done}; {self._advice()}")
        tensors = {f"model.{name}": p.detach().contiguous() for name, p in self.model.named_parameters()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimiser.state[parameter].items():
                tensors[f"adam.{name}.{key}"] = value.clone()
        tensors["tokens_since_fired"] = self.tokens_since_fired
        header = {"identity": json.dumps(self._identity(), sort_keys=True), "step": str(self.step_done)}
        temporary = self.folder / "checkpoint.tmp"
        save_file(tensors, temporary, metadata=header)
        temporary.replace(self.folder / "checkpoint.safetensors")

    def _restore(self) -> bool:
        path = self.folder / "checkpoint.safetensors" if self.folder else None
        if path is None or not path.exists():
            return False
        from safetensors import safe_open

        with safe_open(path, "pt") as file:
            header = file.metadata()
        if header["identity"] != json.dumps(self._identity(), sort_keys=True):
            raise SAEError(f"{path} belongs to a run with other settings or other data; use another folder or --fresh")
        tensors = load_file(path)
        with torch.no_grad():
            for name, parameter in self.model.named_parameters():
                parameter.copy_(tensors[f"model.{name}"])
                prefix = f"adam.{name}."
                self.optimiser.state[parameter] = {
                    key.removeprefix(prefix): value for key, value in tensors.items() if key.startswith(prefix)
                }
        self.tokens_since_fired = tensors["tokens_since_fired"]
        self.step_done = int(header["step"])
        self._trim_log()
        return True

    def _trim_log(self) -> None:
        """Drop the lines of steps that a killed run logged after its last checkpoint."""
        assert self.folder is not None
        path = self.folder / "metrics.jsonl"
        lines = path.read_text().splitlines() if path.exists() else []
        kept: list[str] = []
        for line in lines:
            try:
                if json.loads(line)["step"] > self.step_done:
                    break
            except (json.JSONDecodeError, KeyError):
                break
            kept.append(line + "\n")
        path.write_text("".join(kept))
