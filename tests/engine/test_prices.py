"""What tokens cost: the user's own prices, the list that comes with a package, and nothing made up."""

from __future__ import annotations

import subprocess
import sys

import pytest
from scripted_server import ScriptedServer

from autointerp.engine.account import Account
from autointerp.engine.budget import Budget
from autointerp.engine.prices import Rates, rates
from autointerp.errors import UserError
from autointerp.types import Finding
from prompts.requests import Usage

OPENAI = "https://api.openai.com/v1"


def test_own_prices_are_per_million_and_come_first() -> None:
    own = {"gpt-4o-mini": (1.0, 3.0), "mine": (0.0, 0.0)}
    found = rates("gpt-4o-mini", OPENAI, own)
    assert found == Rates(1e-6, 3e-6, 1e-6) and found.price(Usage(1_000_000, 1_000_000)) == pytest.approx(4.0)
    free = rates("mine", "http://127.0.0.1/v1", own)
    assert free is not None and free.price(Usage(10**9, 10**9)) == 0.0


def test_listed_prices() -> None:
    found = rates("gpt-4o-mini", OPENAI)
    assert found is not None
    assert found.price(Usage(1_000_000, 0)) == pytest.approx(0.15) and found.price(Usage(0, 10**6)) == pytest.approx(
        0.6
    )
    assert found.price(Usage(1_000_000, 0, 1_000_000)) == pytest.approx(0.075), "half of it where the server had it"
    assert found.price(Usage(1000, 10, 400)) == pytest.approx(
        600 * found.prompt + 400 * found.cached + 10 * found.completion
    )


@pytest.mark.parametrize(
    ("model", "url"),
    [
        ("no-such-model", OPENAI), ("gpt-4o-mini", "http://127.0.0.1:8000/v1"), ("", OPENAI), ("gpt-4o-mini", ""),
        ("keyword", "http://localhost/v1"), ("Llama-3.1-8B-Instruct", "https://my-server.example.com/v1"),
    ],
)  # fmt: skip
def test_what_nobody_knows_is_unknown(model: str, url: str) -> None:
    assert rates(model, url) is None
    assert rates(model, url, {"other": (1, 1)}) is None


def test_more_cached_than_asked_is_no_gain() -> None:
    assert Rates(1.0, 1.0, 0.5).price(Usage(10, 0, 20)) == 10.0


def test_the_list_is_only_imported_where_it_is_needed() -> None:
    code = "import sys, autointerp.engine.account; sys.exit('genai_prices' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_budget_in_usd_needs_a_price() -> None:
    server = ScriptedServer()
    for account in (Account(budget=Budget(1.0, "tok")), Account(own_prices={"m": (1, 1)}, budget=Budget(1.0, "usd"))):
        account.check(server)
    with pytest.raises(
        UserError, match=r"the price of m at http://127\.0\.0\.1/v1 is unknown.*--budget 2Mtok.*prices="
    ):
        Account(budget=Budget(1.0, "usd")).check(server)
    Account().check(server)


def test_probes_are_booked() -> None:
    account = Account(own_prices={"m": (1.0, 1.0)}, budget=Budget(1.0, "usd"))
    account.charge(ScriptedServer(), "probe", Finding("chat", True, usage=Usage(60, 40)))
    (row,) = account.cache.spent()
    assert account.budget is not None
    assert (row["stage"], row["calls"]) == ("probe", 1)
    assert row["price"] == account.budget.spent == pytest.approx(1e-4)
