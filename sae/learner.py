"""One dictionary in training: optimiser, schedule, dead latents, log and checkpoint. Its rows come from elsewhere."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from sae import checkpoint
from sae.base import SparseAutoencoder
from sae.errors import Diverged, SAEError
from sae.precision import product_dtype
from sae.training import Batch, StepContext, StepResult
from sae.trainlog import DENSITY_EDGES, TrainLog
from sae.world import ALONE, World

LARGEST_LOSS = 1e4
CHECKPOINT, METRICS = "checkpoint.safetensors", "metrics.jsonl"


class Trainable(Protocol):
    """What an architecture needs beyond inference to be trained here."""

    def step(self, batch: Batch, context: StepContext) -> StepResult: ...


@dataclass(frozen=True, kw_only=True)
class LearnConfig:
    """How one dictionary learns from batches."""

    batch_size: int = 4096
    """Tokens per step, over all processes."""
    lr: float = 1.6e-3
    """Peak learning rate of Adam, divided by sqrt(n_latents / 2^12)."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's running means."""
    warmup_steps: int = 50
    """Steps over which the learning rate rises linearly."""
    decay_share: float = 0.3
    """Share of the run at the end over which the learning rate falls linearly to zero."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""
    dead_after: int = 1_000_000
    """A latent is dead when it has not fired for this many tokens."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl, and between looks at which latents are dead."""
    product: str = "auto"
    """Dtype of the encoder product: auto (what the processor does fast), float32, bfloat16."""
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("batch_size", "log_every", "dead_after", "lr", "clip"):
            if getattr(self, name) <= 0:
                raise SAEError(f"{name} has to be positive, not {getattr(self, name)}")


@dataclass(frozen=True, slots=True)
class Reads:
    """Names of the sites that a dictionary encodes, reconstructs (None: the same), and takes gradients from."""

    x: str = "x"
    target: str | None = None
    gradient: str | None = None


@dataclass(frozen=True, slots=True)
class Progress:
    """Figures of a step that was logged; of all processes together."""

    step: int
    n_steps: int
    loss: float
    fvu: float
    l0: float
    dead_share: float
    lr: float


def length_scale(rows: Tensor, length: float) -> float:
    """`length / mean ||x||` over sampled rows `[n, D]`: what training multiplies activations by."""
    mean_norm = float(rows.double().norm(dim=1).mean())
    if not math.isfinite(mean_norm) or mean_norm == 0:
        raise SAEError(f"the mean norm of the activations is {mean_norm}; nothing can be trained on them")
    return length / mean_norm


class Learner:
    """Trains `model` in place, step by step.

    `folder` receives `metrics.jsonl` and the checkpoint; None keeps nothing. `data` names what is learned
    from: a checkpoint is continued on the same data only.
    """

    def __init__(
        self,
        model: SparseAutoencoder,
        config: LearnConfig,
        n_steps: int,
        *,
        reads: Reads | None = None,
        data: str = "",
        folder: Path | None = None,
        world: World = ALONE,
        device: torch.device | str = "cpu",
    ) -> None:
        if not hasattr(model, "step"):
            raise SAEError(f"'{model.architecture}' has no training step; it can only be loaded and used")
        self.model = model.to(device)
        self.device = torch.device(device)
        self.config, self.n_steps, self.world, self.folder = config, n_steps, world, folder
        self.reads, self.data = reads or Reads(), data
        self.peak_lr = config.lr / math.sqrt(model.n_latents / 2**12)
        self.optimiser = torch.optim.Adam(model.parameters(), lr=self.peak_lr, betas=config.betas, fused=True)
        self.step_done = 0
        self.scale = self.target_scale = 1.0
        self.finished = False
        self._tokens_since_fired = torch.zeros(model.n_latents, dtype=torch.int64, device=device)
        self._fired = torch.zeros_like(self._tokens_since_fired)
        """Firings of each latent since the last line of the log."""
        self._fired_tokens = 0
        self._dead = torch.zeros(0, dtype=torch.int64, device=device)
        self._log = TrainLog(folder / METRICS) if folder and world.leads else None
        self._product_dtype = product_dtype(config.product, self.device)

    # One run: begin or restore, then learn until done, then finish.

    def begin(self, sample: Mapping[str, Tensor]) -> None:
        """Scales from sampled rows of each site, weights from the seed, the decoder bias from the rows."""
        model, reads = self.model, self.reads
        x = sample[reads.x].float()
        y = x if reads.target is None else sample[reads.target].float()
        self._check_widths(x, y)
        length = model.input_length or math.sqrt(model.d_in)
        self.scale = length_scale(x, length)
        self.target_scale = (
            self.scale
            if reads.target is None
            else length_scale(y, model.input_length or math.sqrt(model.config.width_out))
        )
        model.initialise(self.config.seed)
        model.initialise_from(y.to(self.device) * self.target_scale)
        # Samples of streams differ between processes; what starts from them must not.
        scales = torch.tensor([self.scale, self.target_scale], dtype=torch.float64, device=self.device)
        for tensor in (scales, *model.parameters(), *model.buffers()):
            self.world.from_first(tensor)
        self.scale, self.target_scale = scales.tolist()
        if self._log:
            self._log.begin()

    def learn(self, rows: Mapping[str, Tensor]) -> StepResult:
        """One step on this process's rows of the batch."""
        batch = self._batch(rows)
        context = StepContext(
            step=self.step_done, n_steps=self.n_steps, n_rows=self.config.batch_size, dead=self._dead,
            total=self.world.total, largest=self.world.largest,
        )  # fmt: skip
        self._set_lr()
        for parameter in self.model.parameters():
            parameter.grad = None
        with torch.no_grad():
            with self.model.product_in(self._product_dtype):
                result = cast(Trainable, self.model).step(batch, context)
            del batch
            result = self._share(result)
            self.model.before_update()
            torch.nn.utils.clip_grad_norm_(self.model.parameters(), self.config.clip)
            self.optimiser.step()
            self.model.after_update()
            self._count(result)
        self.step_done += 1
        if self.step_done % self.config.log_every == 0:
            self._dead = (self._tokens_since_fired > self.config.dead_after).nonzero()[:, 0]
        return result

    def report(self, result: StepResult) -> Progress:
        """Read a step's figures, complain if they are no numbers, and put them in the log."""
        loss = float(result.loss)
        # An SAE that says nothing has a loss of 1; far beyond that no step leads back.
        if not loss < LARGEST_LOSS:
            raise Diverged(f"the loss is {loss:.3g} at step {self.step_done}; {self._advice()}")
        progress = Progress(
            step=self.step_done,
            n_steps=self.n_steps,
            loss=loss,
            fvu=float(result.fvu),
            l0=float(result.n_active) / self.config.batch_size,
            dead_share=float((self._tokens_since_fired > self.config.dead_after).float().mean()),
            lr=float(self.optimiser.param_groups[0]["lr"]),
        )
        if self._log:
            density = self._fired.double() / max(1, self._fired_tokens)
            counts = torch.histogram(density.cpu().log10().clamp(-1e3, 0), torch.tensor(DENSITY_EDGES).double()).hist
            parts = {name: float(value) for name, value in result.parts.items()}
            self._log.add({**asdict(progress), **parts, "density_histogram": [int(c) for c in counts]})
        self._fired.zero_()
        self._fired_tokens = 0
        return progress

    def save_checkpoint(self) -> None:
        """Everything the next step depends on.

        Raises:
            Diverged: a weight is not finite; the checkpoint on disk is left as it was.
        """
        if not all(bool(torch.isfinite(parameter).all()) for parameter in self.model.parameters()):
            raise Diverged(f"a weight is not finite after step {self.step_done}; {self._advice()}")
        if self.folder and self.world.leads:
            header = {
                "identity": self.identity(), "step": self.step_done, "scale": self.scale,
                "target_scale": self.target_scale, "fired_tokens": self._fired_tokens,
            }  # fmt: skip
            extra = {"tokens_since_fired": self._tokens_since_fired, "fired": self._fired, "dead": self._dead}
            checkpoint.save(self.folder / CHECKPOINT, self.model, self.optimiser, extra, header)

    def restore(self) -> bool:
        """Go back to the last checkpoint; False if there is none.

        Raises:
            SAEError: it belongs to other settings or is damaged.
        """
        path = self.folder / CHECKPOINT if self.folder else None
        if path is None or not path.is_file():
            return False
        header, extra = checkpoint.load(path, self.model, self.optimiser, self.identity(), self.device)
        self.scale, self.target_scale = float(header["scale"]), float(header["target_scale"])
        self._fired_tokens = int(header["fired_tokens"])
        self._tokens_since_fired, self._fired, self._dead = (
            extra[name] for name in ("tokens_since_fired", "fired", "dead")
        )
        self.step_done = int(header["step"])
        if self._log:
            self._log.cut(self.step_done)
        return True

    def finish(self) -> SparseAutoencoder:
        """Fold the input scale in: the dictionary now reads raw activations. Only the first call does it."""
        if not self.finished:
            self.finished = True
            self.model.rescale(self.scale, self.target_scale)
            recorded: dict[str, Any] = {"kind": "expected_average", "scale": self.scale, "folded": True}
            if self.reads.target is not None:
                recorded["target_scale"] = self.target_scale
            self.model.metadata.normalization = recorded
            self.model.metadata.n_tokens = self.step_done * self.config.batch_size
        return self.model

    def identity(self) -> dict[str, Any]:
        """What a checkpoint has to agree with to be continued."""
        return {
            "architecture": self.model.architecture,
            "sae": self.model.config_dict(),
            "learn": asdict(self.config),
            "reads": asdict(self.reads),
            "data": self.data,
            "n_steps": self.n_steps,
        }

    def _batch(self, rows: Mapping[str, Tensor]) -> Batch:
        """The rows in float32 and in training's scale. What was stored is not changed: others may read it too."""

        def scaled(name: str | None, factor: float) -> Tensor | None:
            if name is None:
                return None
            stored = rows[name]
            moved = stored.to(self.device, torch.float32)
            return moved * factor if moved is stored else moved.mul_(factor)

        x = scaled(self.reads.x, self.scale)
        assert x is not None
        # With x' = s x the chain rule gives dL/dx' = (dL/dx) / s.
        return Batch(x, scaled(self.reads.target, self.target_scale), scaled(self.reads.gradient, 1 / self.scale))

    def _share(self, result: StepResult) -> StepResult:
        """Sum gradients and figures over processes."""
        if self.world.size == 1:
            return result
        for parameter in self.model.parameters():
            if parameter.grad is not None:
                self.world.total_in_place(parameter.grad)
        loss, fvu = self.world.total(torch.stack([result.loss, result.fvu]))
        return result._replace(
            loss=loss, fvu=fvu, fired=self.world.total(result.fired), n_active=self.world.total(result.n_active)
        )

    def _count(self, result: StepResult) -> None:
        self._fired += result.fired
        self._fired_tokens += self.config.batch_size
        self._tokens_since_fired += self.config.batch_size
        self._tokens_since_fired.masked_fill_(result.fired > 0, 0)

    def _set_lr(self) -> None:
        done, config = self.step_done, self.config
        decay_steps = max(1, int(self.n_steps * config.decay_share))
        factor = min(1.0, (done + 1) / max(1, config.warmup_steps), (self.n_steps - done) / decay_steps)
        for group in self.optimiser.param_groups:
            group["lr"] = self.peak_lr * factor

    def _check_widths(self, x: Tensor, y: Tensor) -> None:
        config = self.model.config
        if x.shape[1] != config.d_in or y.shape[1] != config.width_out:
            raise SAEError(
                f"activations are {x.shape[1]} wide and targets {y.shape[1]}; the SAE reads {config.d_in} "
                f"and writes {config.width_out}"
            )
        if not (torch.isfinite(x).all() and torch.isfinite(y).all()):
            raise SAEError("activations hold NaN or infinity; check the subject model's dtype (try float32)")

    def _advice(self) -> str:
        kept = self.folder is not None and (self.folder / CHECKPOINT).is_file()
        where = f"the last good checkpoint is in {self.folder}" if kept else "no checkpoint was kept"
        return f"{where}; try a lower learning rate"
