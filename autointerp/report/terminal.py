"""The card of one latent in the terminal, drawn from the same data as the page's."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from autointerp.errors import UserError
from autointerp.report.content import Content, read_content
from autointerp.report.text import count, figure, interval, visible, words
from autointerp.report.windows import split_pieces

BLOCKS = "▁▂▃▄▅▆▇█"
OPEN, CLOSE = "«", "»"
"""Around tokens on which the latent fires, where no style can mark them."""
TITLES = {"explain": "windows to explain from", "score": "held-out windows to score on"}
SIGNS = {None: "", 0: " ✗", 1: " ✓"}
MAX_NAMED = 8


@dataclass(frozen=True)
class Found:
    """A latent's card, the SAE it is of, and the content whose columns and methods it refers to by number."""

    content: Content
    label: str
    latent: int
    card: dict[str, Any]


def find(run: Path, latent: int, sae: str | None = None) -> Found:
    """The card of a latent of a run. `sae` is an sae_id or a part of one.

    Raises:
        UserError: the run has no such latent, or several SAEs of it have and `sae` names none or more than one.
    """
    content = read_content([run], latent)
    having = [place for place, group in enumerate(content.groups) if latent in group.listed]
    if not having:
        raise UserError(_missing(run, latent))
    names = {place: content.groups[place].sae_id for place in having}
    chosen = [p for p in having if sae in (None, names[p])] or [
        p for p in having if sae is not None and sae in names[p]
    ]
    if len(chosen) != 1:
        listed = ", ".join(visible(name) for name in names.values())
        if not chosen:
            raise UserError(f"no SAE '{sae}' with a latent {latent} in '{run}'; name one with --sae: {listed}")
        raise UserError(f"{len(chosen)} SAEs in '{run}' have a latent {latent}; name one with --sae: {listed}")
    return Found(content, content.groups[chosen[0]].label, latent, content.card(chosen[0]))


def _missing(run: Path, latent: int) -> str:
    there = sorted({n for group in read_content([run]).groups for n in group.listed})
    named = ", ".join(map(str, there[:MAX_NAMED])) + (f", … ({len(there):,} in all)" if len(there) > MAX_NAMED else "")
    choice = f"choose one of {named}, or explain it" if there else "explain it"
    return (
        f"latent {latent} was neither explained nor scored in '{run}': {choice} with "
        f"`autointerp explain --latents {latent}`"
    )


def print_card(found: Found, console: Console) -> None:
    """Print the card: explanations, scores, activations, lens, windows, interventions, prompts."""
    card = found.card
    console.print(Text.assemble("latent ", (str(found.latent), "bold"), f" of {found.label}"))
    for part in (
        *_explanations(card), _numbers(card), Text(), *_scores(found), *_activations(card), *_lens(card),
        *_windows(found, console), *_interventions(card), *_prompts(card),
    ):  # fmt: skip
        console.print(part)


def _explanations(card: dict[str, Any]) -> Iterator[Any]:
    if not card["explanations"]:
        yield Text("no explanation", "italic")
    for n, one in enumerate(card["explanations"]):
        said = Text(_line(one["text"]), "bold" if n == 0 else "") if one["text"] is not None else None
        yield said or Text(f"no explanation: {words(one['status'])}", "italic")
        about = [one["setting"], *one["by"], one["n_windows"] is not None and f"from {one['n_windows']} windows"]
        yield Padding(Text(" · ".join(part for part in about if part), "dim"), (0, 0, 0, 2))


def _numbers(card: dict[str, Any]) -> Text:
    facts = card["facts"]
    density = facts["density"]
    parts = [card["state"], None if density is None else f"density {100 * density:.2g}%"]
    if facts["n_fired"] is not None:
        parts.append(f"fired on {count(facts['n_fired'])} of {count(facts['n_tokens'])} tokens")
    known = [("max activation", "max_activation"), ("mean", "mean_activation")]
    parts += [f"{label} {figure(facts[name], 2)}" for label, name in known if facts[name] is not None]
    return Text(", ".join(part for part in parts if part))


def _scores(found: Found) -> Iterator[Any]:
    card = found.card
    if not card["scores"]:
        yield Text("not scored", "italic")
        return
    main = [card["scores"][one] if isinstance(one, int) else one for one in card["headline"]]
    table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim")
    for name in ("method", "metric", "score", "95% interval", "control", "95% interval", "windows"):
        numeric = name in {"score", "control", "windows"}
        table.add_column(name, justify="right" if numeric else "left", no_wrap=name not in {"method", "metric"})
    for row in main:
        column, real, control = found.content.columns[row["column"]], row["real"], row["control"]
        table.add_row(
            Text(column.method_label + (f", {row['setting']}" if row["setting"] else "")), Text(words(column.metric)),
            *_grade(real), *(_grade(control) if control else ("—", "")),
            count(real["n"]) + (f" ({count(real['failed'])} failed)" if real["failed"] else ""),
        )  # fmt: skip
    yield table
    yield Text()


def _grade(one: dict[str, Any]) -> tuple[str, str]:
    if one["value"] is None:
        return words(one["status"]), ""
    return figure(one["value"], 2), interval(one["low"], one["high"], 2)


def _activations(card: dict[str, Any]) -> Iterator[Any]:
    found = card["histogram"]
    if not found:
        return
    most = max(found["counts"])
    # Square roots, as on the page: the few strong ones would not be seen beside the many weak ones.
    bars = "".join(BLOCKS[round((n / most) ** 0.5 * (len(BLOCKS) - 1))] if n else " " for n in found["counts"])
    yield Text.assemble(
        "activations ", figure(found["low"], 2), " ", (bars, "blue"), " ", figure(found["high"], 2),
        (f"  {sum(found['counts']):,} in {found['windows']:,} sampled windows, drawn evenly over quantiles", "dim"),
    )  # fmt: skip


def _lens(card: dict[str, Any]) -> Iterator[Any]:
    for title, name in (("promotes", "top"), ("suppresses", "bottom")):
        if card["lens"] and card["lens"][name]:
            tokens = "  ".join(f"{_line(token)!r} {figure(logit, 2)}" for token, logit in card["lens"][name])
            yield Text(f"{title:<11} {tokens}")


def _windows(found: Found, console: Console) -> Iterator[Any]:
    card = found.card
    split, kinds = None, set()
    which = [f"{name} {card[name]}" for name in ("corpus", "draw") if card[name] is not None]
    for group in card["windows"]:
        if group["split"] != split:
            split = group["split"]
            title = TITLES.get(split, words(split)) + (f" (of {', '.join(which)})" if which else "")
            yield Text(f"\n{title}", "bold")
            if split == "score":
                yield Text("  " + " · ".join(_tally(one, found.content.methods) for one in card["tallies"]), "dim")
        kind = group["pole"], split, group["kind"]
        shown = sum(len(g["windows"]) for g in card["windows"] if (g["pole"], g["split"], g["kind"]) == kind)
        yield Text(f"  {_title(group)}" + (f" ({shown} of {group['total']} shown)" if kind not in kinds else ""), "dim")
        kinds.add(kind)
        for window in group["windows"]:
            yield from _window(window, found.content.methods, console)


def _title(group: dict[str, Any]) -> str:
    pole = {None: "", -1: ", negative pole"}.get(group["pole"], ", positive pole")
    title = f"{words(group['kind'])}{pole}"
    if group["quantile"] is None:
        return title
    end = {group["quantiles"] - 1: ", strongest", 0: ", weakest"}.get(group["quantile"], "")
    return f"{title}, quantile {group['quantile'] + 1} of {group['quantiles']}{end}"


def _window(window: dict[str, Any], methods: Sequence[str], console: Console) -> Iterator[Any]:
    active = dict(zip(window["active"][0::2], window["active"][1::2], strict=True))
    line = Text()
    for at, piece in enumerate(split_pieces(window["pieces"])):
        text = _line(piece)
        if at in active:
            line.append(text if console.is_terminal else f"{OPEN}{text}{CLOSE}", "bold underline yellow")
        else:
            line.append(text)
    grid = Table.grid(padding=(0, 2))
    grid.add_column(justify="right", min_width=8, no_wrap=True)
    grid.add_column(overflow="fold")
    grid.add_row(Text(figure(window["peak"], 2), "dim"), line)
    if window["verdicts"]:
        said = "   ".join(_verdict(one, methods) for one in window["verdicts"])
        grid.add_row("", Text(said, "dim"))
    yield grid


def _verdict(verdict: Sequence[Any], methods: Sequence[str]) -> str:
    method, right, _, prediction, number, _, status = verdict
    name = words(methods[method])
    if status is not None:
        return f"{name}: {words(status)}"
    said = [{0: "no", 1: "yes"}.get(prediction), None if number is None else figure(number, 2)]
    return f"{name}: {' '.join(part for part in said if part)}{SIGNS[right]}"


def _tally(one: dict[str, Any], methods: Sequence[str]) -> str:
    judged = one.get("right", 0) + one.get("wrong", 0)
    said = [f"{one.get('right', 0)} of {judged} {'on the right side' if one['ranked'] else 'right'}"] if judged else []
    said += [f"{one[name]} {label}" for name, label in (("ungraded", "answered"), ("failed", "failed")) if name in one]
    return f"{words(methods[one['method']])}: {', '.join(said)}"


def _interventions(card: dict[str, Any]) -> Iterator[Any]:
    if card["pairs"]:
        shown = f"{len(card['pairs'])} of {card['n_pairs']}"
        yield Text(f"\nwhat the model writes without and with the latent steered, {shown}", "bold")
    for pair in card["pairs"]:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=8, no_wrap=True)
        grid.add_column(overflow="fold")
        number = "" if pair["probability"] is None else f" {figure(pair['probability'], 2)}"
        failed = "" if pair["status"] == "ok" else f" {words(pair['status'])}"
        grid.add_row(Text("  clean", "dim"), Text(_line(pair["clean"])))
        grid.add_row(Text(f"  steered{number}{failed}", "dim"), Text(_line(pair["steered"])))
        yield grid


def _prompts(card: dict[str, Any]) -> Iterator[Any]:
    if card["prompts"]:
        yield Text("\nprompts: " + ", ".join(f"{who} {sha}" for who, sha in card["prompts"]), "dim")


def _line(text: str) -> str:
    """On one line; every other control character was made visible when the card was written."""
    return text.replace("\n", "↵").replace("\t", "⇥")
