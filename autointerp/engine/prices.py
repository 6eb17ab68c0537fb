"""What tokens cost. A price that nobody knows is None, never 0."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

from prompts.requests import Usage


@dataclass(frozen=True, slots=True)
class Rates:
    """USD per token."""

    prompt: float
    completion: float
    cached: float
    """For prompt tokens that the server had in its prefix cache."""

    def price(self, usage: Usage) -> float:
        fresh = max(0, usage.prompt_tokens - usage.cached_tokens)
        return self.prompt * fresh + self.cached * usage.cached_tokens + self.completion * usage.completion_tokens


def rates(model: str, url: str, own: Mapping[str, tuple[float, float]] | None = None) -> Rates | None:
    """Of `model` at the provider behind `url`: the user's `own` (USD per million prompt and completion tokens) first,
    then the list of genai-prices, which comes with its package and is not fetched."""
    if own and model in own:
        prompt, completion = (value / 1e6 for value in own[model])
        return Rates(prompt, completion, prompt)
    return _listed(model, url)


@cache
def _listed(model: str, url: str) -> Rates | None:
    # Takes 0.4 s to import.
    from genai_prices import Usage as Tokens
    from genai_prices import calc_price

    try:
        # Prices are read off small amounts: tiers for very long prompts begin far beyond any of ours.
        fresh = calc_price(Tokens(input_tokens=1000), model, provider_api_url=url)
        cached = calc_price(Tokens(input_tokens=1000, cache_read_tokens=1000), model, provider_api_url=url)
        said = calc_price(Tokens(output_tokens=1000), model, provider_api_url=url)
    except (LookupError, ValueError):
        return None
    return Rates(*(float(amount.total_price) / 1000 for amount in (fresh, said, cached)))
