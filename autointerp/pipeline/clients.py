"""Who answers a stage: clients made from its settings, and what their servers turn out to do."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from autointerp.clients._announced import SCHEME
from autointerp.clients.hf import HFClient
from autointerp.config import AskingSettings, ScoreSettings
from autointerp.engine.account import Account
from autointerp.engine.batches import BatchSender
from autointerp.engine.budget import Budget, parse, worst_case
from autointerp.engine.drive import Router
from autointerp.engine.local import LocalSender, identity
from autointerp.engine.order import written
from autointerp.engine.sending import Sender, ServerSender
from autointerp.errors import UserError
from autointerp.pipeline.demo_model import demo_embedder
from autointerp.pipeline.session import Session
from autointerp.registries import CLIENTS, member
from autointerp.subject.effects import EffectsClient
from autointerp.subject.steer import SteerClient
from autointerp.types import Client, Finding, Gathering, Server
from prompts.requests import Chat, Choice, Effects, Embed, Likelihood, Request, Steer, fingerprint

API_EMBEDDER = "openai:"
SERVERS = "servers"
"""Folder of a run where servers announce themselves."""

FEATURES: dict[type, tuple[str, ...]] = {
    Chat: ("chat", "schema", "context"),
    Choice: ("choice",),
    Likelihood: ("likelihood",),
}
"""What a server has to do for each class of request; found out by asking, see `_openai_probes`."""
WITHOUT = {
    "schema": "answers can be read as they come, and counted where they cannot be: --set {section}.schemas=false",
    "choice": "choose a server that gives log-probabilities of its answers, or --client hf",
    "likelihood": "read likelihoods in a local model (score.likelihoods=local), or choose another server (vLLM)",
    "seed": "choose another server, or temperature 0",
}
CHARACTERS_PER_TOKEN = 6
"""More than any tokenizer packs into a token of prompt, so that no prompt that might fit is refused."""


@dataclass
class Asked:
    """Clients by the class of request that they answer, for one explainer or scorer (`who`)."""

    who: str
    section: str
    """Of the settings, for remedies."""
    settings: AskingSettings
    clients: dict[type, Client | Server]
    samples: bool = False
    """Several answers to one request are wanted, which differ by their seed."""
    batch_folder: Path | None = None
    """Ask by the batch API, and keep its state there."""
    say: Any = print
    books: Account = field(default_factory=Account, repr=False)
    """The run's, or while it has none, empty ones with its budget and prices: what may be spent on examining."""
    _found: list[tuple[Server, Finding]] | None = field(default=None, repr=False)

    @property
    def model(self) -> str:
        """Models that answer, joined by +."""
        return Router(self.clients).model_for(self.clients)

    @property
    def weights(self) -> list[str]:
        """Which models in this process answer; their names do not tell them apart. Servers are known by name only."""
        return sorted({identity(client) for client in self.clients.values() if not isinstance(client, Server)})

    def examine(self) -> None:
        """Ask each server once for what will be relied on.

        Raises:
            UserError: something is missing; one line that says what, and what to do.
        """
        if self._found is not None:
            return
        for client in self.clients.values():
            if isinstance(client, Server):
                self.books.check(client)
        found: list[tuple[Server, Finding]] = []
        for server in {id(c): c for c in self.clients.values() if isinstance(c, Server)}.values():
            features = {f for kind, c in self.clients.items() if c is server for f in FEATURES.get(kind, ())}
            if not self.settings.schemas:
                features.discard("schema")
            if self.samples:
                features.add("seed")

            async def probe(server: Server = server, features: frozenset[str] = frozenset(features)) -> list[Finding]:
                try:
                    if isinstance(server, Gathering):
                        await server.ready(self.say)
                    return await server.probe(features)
                finally:
                    await server.close()

            worst = sum(self.books.amount(server, worst_case(r)) for r in server.probes(frozenset(features)))
            if not self.books.hold(worst):
                raise self.books.over()
            found += [(server, finding) for finding in asyncio.run(probe())]
            self.books.release(worst)
        bad = next(((server, finding) for server, finding in found if not finding.ok), None)
        if bad:
            server, finding = bad
            remedy = WITHOUT.get(finding.feature, "").format(section=self.section)
            what = finding.said if finding.stop else f"{finding.feature}: {finding.said}"
            raise UserError(
                f"{server.model} at {server.price_url} does not do what {self.who} needs ({what})"
                + (f"; {remedy}" if remedy and not finding.stop else "")
            )
        self._found = found

    def check_length(self, first: Callable[[], Sequence[Request]]) -> None:
        """Raise if requests like the `first` ones cannot fit into the context that a server has told.

        Raises:
            UserError: they cannot.
        """
        told = [(server, finding.value) for server, finding in self._found or [] if finding.value is not None]
        # Made only where there is something to hold them against.
        for request in first() if told else []:
            for server, context in told:
                need = len(written(request)) // CHARACTERS_PER_TOKEN + getattr(request, "max_tokens", 0)
                if self.clients.get(type(request)) is server and need > context:
                    raise UserError(
                        f"{self.who} needs at least {need:,} tokens of context, and {server.model} at "
                        f"{server.price_url} has {context:,}: show fewer or shorter windows, or serve it with more"
                    )

    def router(self, account: Account, stage: str) -> Router:
        """For one stage; books what examining has cost."""
        for server, finding in self._found or []:
            if finding.usage.prompt_tokens:
                account.charge(server, "probe", finding)
        self._found = [] if self._found is not None else None
        return Router(self.clients, account, stage=stage, sender=self._sender)

    def _sender(self, client: Client | Server, account: Account) -> Sender:
        if not isinstance(client, Server):
            return LocalSender(client, account)
        if self.batch_folder is not None:
            return BatchSender(client, account, self.batch_folder, say=self.say)
        retries, timeout = self.settings.retries, self.settings.timeout
        return ServerSender(client, account, retries=retries, timeout=timeout, say=self.say)


def asked_of(
    session: Session, who: str, section: str, settings: AskingSettings, needs: frozenset[type[Request]], config: Any
) -> Asked:
    """One client per kind of request that is needed, and none that is not.

    Raises:
        UserError: nobody answers one of them, or a model or a key is missing.
    """
    by_client = isinstance(settings, ScoreSettings) and (settings.likelihoods == "client" or settings.client == "fake")
    from_chats = needs & ({Chat, Choice, Likelihood} if by_client else {Chat, Choice})
    chats = chat_client(session, settings) if from_chats else None
    clients: dict[type, Client | Server] = {kind: chats for kind in from_chats if chats is not None}
    if Likelihood in needs - from_chats:
        clients[Likelihood] = likelihoods(session)
    if Embed in needs:
        clients[Embed] = embedder(session)
    if Steer in needs:
        clients[Steer] = SteerClient(session.subject, session.sae, session.hookpoint)
    if Effects in needs:
        clients[Effects] = EffectsClient(session.subject, session.sae, session.hookpoint)
    Router({kind: client for kind, client in clients.items() if kind in client.supports}).require(needs, who)
    run = session.settings
    budget = Budget(*parse(run.budget)) if run.budget is not None else None
    return Asked(
        who, section, settings, clients,
        samples=getattr(config, "temperature", 0.0) > 0,
        batch_folder=session.run.folder / "batches" if run.batch else None,
        say=session.reporter.say,
        books=session.run.account if session.run.has_books else Account(budget=budget, own_prices=run.prices),
    )  # fmt: skip


def chat_client(session: Session, asked: AskingSettings) -> Client | Server:
    """The client that answers chat requests. Scorers that ask the same model share it, loaded once."""
    module, subject = member(CLIENTS, asked.client), session.settings.subject
    llm = getattr(module, "DEFAULT_MODEL", None) if asked.llm is None else asked.llm
    if llm is None:
        raise UserError(
            f"no model for the client '{asked.client}': name one with --llm (to explain) or --scorer-llm (to judge)"
        )
    offered = {
        "base_url": address(session, asked), "max_concurrency": asked.max_concurrency, "timeout": asked.timeout,
        "identity": asked.server, "schemas": asked.schemas, "room": asked.room, "server_wait": asked.server_wait,
        "device": subject.device, "dtype": subject.dtype,
    }  # fmt: skip
    options = {name: offered[name] for name in getattr(module, "TAKES", ())} | asked.client_options
    known = fingerprint([asked.client, llm, options])
    if known not in session.models.chat_clients:
        for earlier in session.models.chat_clients.values():
            # Two engines would not fit into one GPU.
            if not isinstance(earlier, Server):
                asyncio.run(earlier.close())
        session.models.chat_clients.clear()
        try:
            session.models.chat_clients[known] = module.create(llm, **options)
        except TypeError as error:
            raise UserError(f"client '{asked.client}': {error}; see client_options in docs/config.md") from error
    return session.models.chat_clients[known]


def address(session: Session, asked: AskingSettings) -> str | None:
    """The base URL, or the folder where servers announce themselves: `servers:` alone is that of the run."""
    return f"{SCHEME}{session.run.books / SERVERS}" if asked.base_url == SCHEME else asked.base_url


def embedder(session: Session) -> Client | Server:
    settings = session.settings.score
    name = settings.embedder
    if name is not None and name.startswith(API_EMBEDDER):
        from autointerp.clients.openai import OpenAIClient

        return OpenAIClient(
            name.removeprefix(API_EMBEDDER), address(session, settings), settings.max_concurrency, settings.timeout,
            settings.server, server_wait=settings.server_wait,
        )  # fmt: skip
    return session.models.encoder(name or str(demo_embedder()), session.settings.subject.device)


def likelihoods(session: Session) -> Client:
    """A local model whose likelihoods are read: `--scorer-llm` if it is a folder, else the (trained) subject model."""
    llm = session.settings.score.llm
    if llm is not None and Path(llm).expanduser().is_dir():
        how = session.settings.subject.model_copy(update={"dtype": "float32"})
        return HFClient(session.models.subject(llm, how))
    return HFClient(session.reader)
