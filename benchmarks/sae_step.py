"""One training step of a TopK SAE against its encoder product, plain autograd, and other projects' steps.

The encoder product (pre-activations with their bias, for the whole batch) is the one dense thing a step
has to do. All contestants run in one process, taking turns, in float32, with activations in memory.
Ours does what it does in a real run: AuxK, dead-latent tracking, clipping, logging. The others' steps do
what their own trainers do, with Adam, clipping and dead-latent tracking, but without logging.
"""

from __future__ import annotations

import importlib.util
import statistics
from collections.abc import Callable
from typing import Any

import torch
from _bench import Figures, interleaved, parser, ratio
from torch import Tensor

from sae.architectures.topk import Config, TopK
from sae.learner import LearnConfig, Learner

D, K = 576, 32
WIDE = 18432
MB = 2**20


def learner(x: Tensor, width: int, *, dead_share: float = 0.0, product: str = "float32") -> Learner:
    model = TopK(Config(d_in=x.shape[1], n_latents=width, k=K))
    made = Learner(model, LearnConfig(batch_size=len(x), dead_after=10**12, product=product), n_steps=10**6)
    made.begin({"x": x})
    if dead_share:
        generator = torch.Generator().manual_seed(1)
        made._dead = torch.randperm(width, generator=generator)[: int(width * dead_share)]
        with torch.no_grad():
            model.b_enc[made._dead] -= 100.0
    return made


def step_of(made: Learner, x: Tensor) -> Callable[[], None]:
    """A step as training takes it. The set of dead latents is kept as it is, so that every round costs the same."""
    dead = made._dead

    def step() -> None:
        result = made.learn({"x": x})
        made._dead = dead
        if made.step_done % made.config.log_every == 0:
            made.report(result)

    return step


def product_of(made: Learner, x: Tensor) -> Callable[[], None]:
    model, rows = made.model, x * made.scale

    @torch.no_grad()
    def product() -> None:
        torch.addmm(model.b_enc, rows, model.encoder.T)

    return product


def plain_autograd(x: Tensor, width: int) -> Callable[[], None]:
    """The same loss written down densely, with torch's own backward and Adam."""
    model = TopK(Config(d_in=x.shape[1], n_latents=width, k=K))
    model.initialise(0)
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        pre = (x - model.b_dec) @ model.encoder.T + model.b_enc
        values, latents = pre.topk(K, dim=1)
        codes = torch.zeros_like(pre).scatter(1, latents, values.relu())
        error = codes @ model.W_dec + model.b_dec - x
        loss = error.square().sum() / (x - x.mean(dim=0)).square().sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


def sparsify(x: Tensor, width: int) -> Callable[[], None]:
    from sparsify import SparseCoder, SparseCoderConfig

    model = SparseCoder(x.shape[1], SparseCoderConfig(num_latents=width, k=K))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)
    since_fired = torch.zeros(width, dtype=torch.int64)
    fired = torch.zeros(width, dtype=torch.bool)
    shown = 0.0

    def step() -> None:
        nonlocal shown
        variance = (x - x.mean(0)).pow(2).sum()
        out = model(x=x, y=x, dead_mask=since_fired > 10_000_000, total_variance=variance)
        fired[out.latent_indices.flatten()] = True
        shown += float(out.fvu.detach()) + float(out.auxk_loss.detach())
        optimiser.zero_grad()
        (out.fvu + out.auxk_loss / 32).backward()
        since_fired.add_(len(x))
        since_fired[fired] = 0
        fired.zero_()
        model.remove_gradient_parallel_to_decoder_directions()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        model.set_decoder_norm_to_unit_norm()

    return step


def sae_lens(x: Tensor, width: int) -> Callable[[], None]:
    from sae_lens import TopKTrainingSAE, TopKTrainingSAEConfig
    from sae_lens.saes.sae import TrainStepInput

    model = TopKTrainingSAE(TopKTrainingSAEConfig(d_in=x.shape[1], d_sae=width, k=K, dtype="float32", device="cpu"))
    optimiser = torch.optim.Adam(model.parameters(), lr=1e-4)

    def step() -> None:
        given = TrainStepInput(
            sae_in=x, coefficients={}, dead_neuron_mask=None, n_training_steps=0, is_logging_step=False
        )
        out = model.training_forward_pass(given)
        optimiser.zero_grad()
        out.loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()

    return step


PEERS: dict[str, tuple[str, Callable[[Tensor, int], Callable[[], None]]]] = {
    "eai-sparsify": ("sparsify", sparsify),
    "sae-lens": ("sae_lens", sae_lens),
}


def peak_bytes(made: Learner, x: Tensor) -> int:
    """Most that a step allocates at any moment beyond weights, gradients and optimiser, by the allocator's account."""
    from torch.profiler import ProfilerActivity, profile

    step = step_of(made, x)
    step()
    for parameter in made.model.parameters():
        parameter.grad = None
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiled:
        step()
    events: Any = profiled.profiler
    moves = sorted((e.start_ns(), e.nbytes()) for e in events.kineto_results.events() if e.name() == "[memory]")
    held = most = 0
    for _, size in moves:
        held += size
        most = max(most, held)
    gradients = sum(p.numel() * p.element_size() for p in made.model.parameters())
    return most - gradients


def main() -> None:
    made = parser(__doc__ or "")
    made.add_argument("--batch", type=int, default=4096)
    made.add_argument("--width", type=int, default=4608)
    arguments = made.parse_args()
    torch.set_num_threads(arguments.threads)
    batch, width = arguments.batch, arguments.width
    x = torch.randn(batch, D, generator=torch.Generator().manual_seed(0))
    figures = Figures(
        "one TopK training step", setting={"batch": batch, "d_in": D, "k": K, "threads": arguments.threads}
    )

    ours = learner(x, width)
    contestants = {
        "encoder product": product_of(ours, x),
        "ours": step_of(ours, x),
        "ours, 20% dead": step_of(learner(x, width, dead_share=0.2), x),
        "ours, dtype auto": step_of(learner(x, width, product="auto"), x),
        "plain autograd": plain_autograd(x, width),
    }
    for name, (package, make) in PEERS.items():
        if importlib.util.find_spec(package) is not None:
            contestants[name] = make(x, width)
    seconds = interleaved(contestants, arguments.rounds)
    for name, taken in seconds.items():
        figures.add(f"{name}, tokens/s at {width}", batch / statistics.median(taken))
    figures.add(f"ours / encoder product at {width}", ratio(seconds, "ours", "encoder product"), 1.5)
    auto = learner(x, width, product="auto")._product_dtype
    figures.add(
        "dtype auto / encoder product", ratio(seconds, "ours, dtype auto", "encoder product"),
        note=f"the product ran in {auto or torch.float32}",
    )  # fmt: skip
    figures.add("20% dead / none dead", ratio(seconds, "ours, 20% dead", "ours"), 1.15)
    figures.add("plain autograd / ours", ratio(seconds, "plain autograd", "ours"))
    for name, limit in (("eai-sparsify", 2.0), ("sae-lens", 5.0)):
        there = name in seconds
        figures.add(
            f"{name} / ours", ratio(seconds, name, "ours") if there else None, limit, at_most=False,
            note="" if there else "not installed",
        )  # fmt: skip
    del contestants

    wide = learner(x, WIDE)
    seconds = interleaved(
        {"encoder product": product_of(wide, x), "ours": step_of(wide, x)}, max(5, arguments.rounds // 2)
    )
    figures.add(f"ours / encoder product at {WIDE}", ratio(seconds, "ours", "encoder product"), 1.35)

    for label, one in (
        (str(width), ours),
        (f"{width}, 20% dead", learner(x, width, dead_share=0.2)),
        (str(WIDE), wide),
    ):
        chunk = one.model.chunk_rows(batch) * one.model.n_latents * 4
        allowed = 4 * x.numel() * 4 + chunk
        figures.add(
            f"memory above weights, gradients and optimiser at {label}, MB", peak_bytes(one, x) / MB, allowed / MB,
            note="four batches of input and one encoder chunk",
        )  # fmt: skip
    figures.finish(arguments)


if __name__ == "__main__":
    main()
