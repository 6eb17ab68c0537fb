"""Clients for a stage, made from its settings."""

from __future__ import annotations

from pathlib import Path

from autointerp.clients.encoder import EncoderClient
from autointerp.clients.hf import HFClient
from autointerp.config import ExplainSettings, ScoreSettings
from autointerp.errors import UserError
from autointerp.pipeline.demo_model import demo_embedder
from autointerp.pipeline.session import Session
from autointerp.registries import CLIENTS, member
from autointerp.subject.load import load_subject
from autointerp.subject.steer import SteerClient
from autointerp.types import Client
from prompts.requests import Chat, Embed, Likelihood, Request, Steer


def chat_client(name: str, llm: str | None, base_url: str | None, max_concurrency: int) -> Client:
    """The client that answers chat requests."""
    module = member(CLIENTS, name)
    if llm is None:
        if name != "fake":
            raise UserError(
                f"no model for the client '{name}': name one with --llm (to explain) or --scorer-llm (to judge)"
            )
        llm = "keyword"
    options = {"base_url": base_url, "max_concurrency": max_concurrency} if name == "openai" else {}
    client: Client = module.create(llm, **options)
    return client


def embedder(session: Session) -> EncoderClient:
    name = session.settings.score.embedder
    return EncoderClient(name or str(demo_embedder()), device=session.settings.subject.device)


def likelihoods(session: Session) -> Client:
    """A local model whose likelihoods are read: `--scorer-llm` if it is a folder, else the (trained) subject model."""
    llm = session.settings.score.llm
    if session.settings.score.client == "fake":
        return chat_client("fake", llm, None, 1)
    if llm is not None and Path(llm).expanduser().is_dir():
        return HFClient(load_subject(llm, device=session.settings.subject.device))
    return HFClient(session.reader)


def clients_for(
    needs: frozenset[type[Request]], session: Session, asked: ExplainSettings | ScoreSettings
) -> list[Client]:
    """One client per kind of request that is needed, and none that is not; `asked` says who answers chats."""
    made: list[Client] = []
    if Chat in needs:
        made.append(chat_client(asked.client, asked.llm, asked.base_url, asked.max_concurrency))
    if Likelihood in needs:
        made.append(likelihoods(session))
    if Embed in needs:
        made.append(embedder(session))
    if Steer in needs:
        made.append(SteerClient(session.subject, session.sae, session.hookpoint))
    return made
