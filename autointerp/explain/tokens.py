"""Explain without a language model: words and phrases that set activating windows apart, as a short label.

Experimental, our own design. Evidence is contrastive: words at the activation's peak, the words before and
after it, phrases through it, and words of its context, each by how much more often it occurs in activating
windows than in others. Labels grow word by word; at each step the one is kept whose sentence embedding best
separates activating from non-activating windows **of the explaining split** (AUROC). Scoring windows come
from other documents, so this choice does not flatter the scores.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Generator, Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from autointerp.explain._proposal import Proposal
from autointerp.types import LatentRecord
from prompts.requests import Embed, EmbedReply, Reply
from scoring.intervals import auroc
from scoring.types import Window

NAME = "tokens"
NEEDS = frozenset({Embed})
TEMPLATES: tuple[str, ...] = ()

WORD = re.compile(r"[^\W_]+(?:['_.-][^\W_]+)*|[^\w\s]+")
TOPICS = re.compile(r"^[^\W\d_]{3,}$")

Asks = Generator[list[Embed], Sequence[Reply], Proposal]
Embeds = Generator[list[Embed], Sequence[Reply], NDArray[np.float64] | None]


@dataclass(frozen=True, kw_only=True)
class Config:
    peak_words: int = 10
    """Words at the peak that enter the search."""
    context_words: int = 24
    """Words of the surrounding text that enter the search."""
    phrases: int = 8
    """Phrases through the peak, and words before and after it, that enter the search."""
    snippets: int = 16
    """Excerpts around a peak that enter the search, taken evenly over all strengths."""
    snippet_words: int = 4
    """Words on either side of the peak in an excerpt."""
    longest: int = 5
    """Most words and phrases in a label."""
    dominant: float = 0.4
    """A word at the peak of this share of the activating windows opens the label, whatever the search says."""
    support: float = 0.05
    """Share of the activating windows in which a word or phrase has to occur."""
    least_gain: float = 0.01
    """AUROC that a further word has to add on the explaining windows; keeps labels short."""


@dataclass(frozen=True, slots=True)
class Evidence:
    """What was found at and around the peaks, best first."""

    dominant: list[str]
    peak: list[str]
    context: list[str]
    phrases: list[str]
    snippets: list[str]


def explain(record: LatentRecord, config: Config) -> Asks:
    activating = [w for w in record.explain if w.activating]
    others = [w for w in record.explain if not w.activating]
    if not activating or not others:
        return Proposal(None, "too_few_windows")
    evidence = gather(activating, others, config)
    terms = list(dict.fromkeys([*evidence.peak, *evidence.phrases, *evidence.context, *evidence.snippets]))
    if not terms:
        return Proposal(None, "no_evidence")
    windows = yield from _embed([w.text for w in [*activating, *others]])
    if windows is None:
        return Proposal(None, "embedding_failed")
    positive, negative = windows[: len(activating)], windows[len(activating) :]

    chosen = evidence.dominant
    best = 0.0
    if chosen:
        values = yield from _separate([plain(chosen)], positive, negative)
        best = float(values.max()) if values is not None else 0.0
    while len(chosen) < config.longest:
        # One excerpt says what kind of text is meant; more would make the label a heap of quotations.
        cited = any(word in evidence.snippets for word in chosen)
        open_terms = [t for t in terms if t not in chosen and not (cited and t in evidence.snippets)]
        tried = [[*chosen, term] for term in open_terms]
        values = yield from _separate([plain(words) for words in tried], positive, negative)
        if values is None or not len(values) or (chosen and values.max() < best + config.least_gain):
            break
        chosen, best = tried[int(values.argmax())], float(values.max())
    if not chosen:
        return Proposal(None, "embedding_failed")
    labels = phrasings(chosen, evidence)
    values = yield from _separate(labels, positive, negative)
    if values is None:
        return Proposal(None, "embedding_failed")
    return Proposal(labels[int(values.argmax())])


def _embed(texts: list[str]) -> Embeds:
    replies = yield [Embed(text) for text in texts]
    if not all(isinstance(reply, EmbedReply) for reply in replies):
        return None
    return np.array([reply.vector for reply in replies if isinstance(reply, EmbedReply)])


def _separate(labels: list[str], positive: NDArray[np.float64], negative: NDArray[np.float64]) -> Embeds:
    """AUROC of each label's cosine, activating against other windows."""
    if not labels:
        return np.empty(0)
    vectors = yield from _embed(labels)
    if vectors is None:
        return None
    return np.array([auroc(list(positive @ v), list(negative @ v)) for v in vectors])


def plain(words: Sequence[str]) -> str:
    return ", ".join(words)


def phrasings(words: list[str], evidence: Evidence) -> list[str]:
    """Ways to say a list of words in plain language; the search decides among them."""
    cited = [word for word in words if word in evidence.snippets]
    at_peak = {*evidence.dominant, *evidence.peak, *evidence.phrases}
    named = [word for word in words if word in at_peak]
    around = [word for word in words if word not in cited and word not in named]
    quoted = ", ".join(f'"{word}"' for word in [*named, *around])
    example = "".join(f', as in "{excerpt}"' for excerpt in cited)
    labels = []
    if quoted:
        labels += [quoted + example, f"text with {quoted}{example}"]
    else:
        labels += [f'text like "{excerpt}"' for excerpt in cited]
    if around:
        peak = ", ".join(f'"{word}"' for word in named)
        labels.append(f"{peak or 'text'}{' in text' if peak else ''} about {', '.join(around)}{example}")
    return labels


def gather(activating: Sequence[Window], others: Sequence[Window], config: Config) -> Evidence:
    """Rank words and phrases by log-odds of occurring in activating against other windows."""
    peaks: Counter[str] = Counter()
    phrases: Counter[str] = Counter()
    snippets: list[str] = []
    for window in activating:
        words, at = words_and_peak(window)
        if at is None:
            continue
        peaks[words[at]] += 1
        left = words[at - 1] if at else ""
        right = words[at + 1] if at + 1 < len(words) else ""
        snippets.append(excerpt(window, config.snippet_words))
        through = [f"{left} {words[at]}", f"{words[at]} {right}", f"{left} {words[at]} {right}"]
        phrases.update(dict.fromkeys(through, 1))
    inside = [set(words_of(w.text)) for w in activating]
    outside = [set(words_of(w.text)) for w in others]
    # What stands in one or two windows only is a name or an accident, however well it separates them.
    floor = max(2, math.ceil(config.support * len(activating)))
    common = Counter({p.strip(): n for p, n in phrases.items() if n >= floor and " " in p.strip()})
    most, times = peaks.most_common(1)[0] if peaks else ("", 0)
    return Evidence(
        dominant=[most] if times >= config.dominant * len(activating) else [],
        peak=_top(peaks, inside, outside, config.peak_words, floor),
        context=_top(
            Counter(w for s in inside for w in s if TOPICS.match(w)), inside, outside, config.context_words, floor
        ),
        # Ties are broken by the text: the order in which sets were walked differs from process to process.
        phrases=sorted(common, key=lambda phrase: (-common[phrase], phrase))[: config.phrases],
        snippets=[snippets[i] for i in range(0, len(snippets), max(1, len(snippets) // max(1, config.snippets)))],
    )


def _top(counts: Counter[str], inside: list[set[str]], outside: list[set[str]], n: int, floor: int) -> list[str]:
    """Candidates by count times log-odds, so that neither rare nor ubiquitous words come first."""
    ranked = []
    for word, count in counts.items():
        if count < floor:
            continue
        odds = _odds(word, inside) - _odds(word, outside)
        if odds > 0:
            ranked.append((-count * odds, word))
    return [word for _, word in sorted(ranked)[:n]]


def _odds(word: str, windows: Sequence[Iterable[str]]) -> float:
    hits = sum(word in words for words in windows)
    return math.log((hits + 0.5) / (len(windows) - hits + 0.5))


def excerpt(window: Window, reach: int) -> str:
    """The text around the peak, some words to either side, on one line."""
    words = list(WORD.finditer(window.text))
    at = words_and_peak(window)[1] or 0
    span = words[max(0, at - reach) : at + reach + 1]
    return " ".join(window.text[span[0].start() : span[-1].end()].split()) if span else ""


def words_of(text: str) -> list[str]:
    return [match.group().lower() for match in WORD.finditer(text)]


def words_and_peak(window: Window) -> tuple[list[str], int | None]:
    """The window's words, and the index of the one that holds the middle of the peak token."""
    start = sum(len(piece) for piece in window.pieces[: window.peak])
    piece = window.pieces[window.peak]
    lead = len(piece) - len(piece.lstrip())
    middle = start + lead + max(0, len(piece.strip()) - 1) // 2
    words, at = [], None
    for i, match in enumerate(WORD.finditer(window.text)):
        words.append(match.group().lower())
        if match.start() <= middle < match.end():
            at = i
    return words, at
