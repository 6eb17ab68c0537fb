"""What an OpenAI-compatible server really does, found out before anything is spent.

Servers accept options that they ignore, and give log-probabilities of the wrong tokens. Each probe is a tiny request
whose right answer is known whatever the model says, because it follows from another answer of the same server.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

from autointerp.clients._openai_replies import at, read_usage
from autointerp.types import Finding
from prompts.requests import (
    Chat,
    ChatReply,
    Choice,
    Failure,
    Likelihood,
    LikelihoodReply,
    Message,
    Reply,
    Request,
    Usage,
)
from prompts.schemas import obeying

if TYPE_CHECKING:
    from autointerp.clients.openai import OpenAIClient

# No model would say this number by itself.
CODE = {"type": "object", "properties": {"code": {"type": "integer", "enum": [7319]}}, "required": ["code"]}
GREETING = (Message("user", "Greet me with one short friendly sentence."),)
QUESTION = (Message("user", "Is water wet? Answer with one word, yes or no."),)
NONSENSE = "violet anchor seven violet quickly anchor lamp seven"
"""Its last word is unlikely, and what a model says next is likelier: values that are shifted by a token differ."""
TOLERANCE = 0.1
"""Nats by which two log-probabilities of one token may differ between two requests."""


SCHEMA_CHAT = Chat(GREETING, max_tokens=64, schema=CODE)
YES_OR_NO = Choice(QUESTION, ("yes", "no", "Yes", "No"))
CONTINUED = 6
"""Tokens that a server continues the nonsense by."""
SAMPLES = tuple(Chat(GREETING, max_tokens=24, temperature=1.0, sample_index=index) for index in (1, 1, 2, 3))

TRIES = 2
"""One fault in passing is forgiven."""
ASKED: dict[str, tuple[Request, ...]] = {
    "chat": (Chat(GREETING, max_tokens=16),),
    "schema": (SCHEMA_CHAT,),
    "choice": (YES_OR_NO,),
    "likelihood": (Chat((Message("user", NONSENSE),), max_tokens=CONTINUED), Likelihood(NONSENSE, "word " * CONTINUED)),
    "seed": SAMPLES,
    "context": (),
}
"""About what each probe asks: for a budget, which is asked before."""


def at_most(features: frozenset[str]) -> list[Request]:
    """What probing these features may cost."""
    return [request for feature in features for request in ASKED[feature] for _ in range(TRIES)]


async def probe(client: OpenAIClient, features: frozenset[str]) -> list[Finding]:
    """Findings in the order of `PROBES`; after one that stops everything there is no other."""
    found: list[Finding] = []
    for feature, examine in PROBES.items():
        if feature in features:
            found.append(await examine(client))
            if found[-1].stop:
                break
    return found


async def chat(client: OpenAIClient) -> Finding:
    """Whether it answers at all."""
    reply, stop = await _ask(client, Chat(GREETING, max_tokens=16))
    # Too short or odd an answer is an answer.
    ok = not isinstance(reply, Failure) or reply.kind in ("truncated", "empty", "refused")
    return Finding("chat", ok, getattr(reply, "message", ""), reply.usage, stop=stop or not ok)


async def schema(client: OpenAIClient) -> Finding:
    """Whether it holds an answer to a JSON schema that the model would not obey by itself."""
    reply, stop = await _ask(client, SCHEMA_CHAT)
    if isinstance(reply, ChatReply):
        ok = obeying(reply.text, CODE) is not None
        return Finding("schema", ok, "" if ok else "it accepts a JSON schema and ignores it", reply.usage)
    ignored = isinstance(reply, Failure) and reply.kind == "truncated"
    said = "it accepts a JSON schema and ignores it" if ignored else f"it fails on a JSON schema ({_why(reply)})"
    return Finding("schema", False, said, reply.usage, stop=stop)


async def choice(client: OpenAIClient) -> Finding:
    """Whether it gives log-probabilities of its answer."""
    reply, stop = await _ask(client, YES_OR_NO)
    # An answer that is neither is an answer with log-probabilities.
    ok = not isinstance(reply, Failure) or reply.kind == "unparsable"
    return Finding("choice", ok, "" if ok else _why(reply), reply.usage, stop=stop)


async def likelihood(client: OpenAIClient) -> Finding:
    """Whether the log-probabilities of an echoed prompt are those of its tokens.

    The server continues a prompt; then the continuation is echoed, and has to get the same values.
    """
    usage = Usage()
    try:
        sdk = client.endpoints.pick(NONSENSE).connection
        body = {"model": client.model, "prompt": NONSENSE, "max_tokens": CONTINUED, "temperature": 0.0, "logprobs": 1}
        said = await sdk.post("/completions", cast_to=object, body=body)
    except Exception as error:  # whatever goes wrong here, the feature is missing
        return Finding("likelihood", False, client.redacted(f"{type(error).__name__}: {error}"))
    usage = read_usage(said)
    text, values = at(said, "choices", 0, "text"), at(said, "choices", 0, "logprobs", "token_logprobs")
    if not isinstance(text, str) or not text or not isinstance(values, list) or not values:
        return Finding("likelihood", False, "it gives no log-probabilities of a completion", usage)
    reply, stop = await _ask(client, Likelihood(NONSENSE, text))
    usage = Usage(usage.prompt_tokens + reply.usage.prompt_tokens, usage.completion_tokens)
    if not isinstance(reply, LikelihoodReply):
        return Finding("likelihood", False, _why(reply), usage, stop=stop)
    pairs = zip(values, reply.token_logprobs, strict=False)
    same = len(values) == len(reply.token_logprobs) and all(abs(a - b) <= TOLERANCE for a, b in pairs)
    # The server may cut the echoed text into other tokens than it generated.
    cut = len(values) != len(reply.token_logprobs) and abs(sum(values) - reply.logprob) <= TOLERANCE * len(values)
    said_of = "" if same or cut else "its log-probabilities of a prompt are not those of the prompt's tokens"
    return Finding("likelihood", same or cut, said_of, usage)


async def seed(client: OpenAIClient) -> Finding:
    """Whether one seed gives one sample, and another seed another."""
    replies = [(await _ask(client, request))[0] for request in SAMPLES]
    usage = Usage(*(sum(getattr(r.usage, n) for r in replies) for n in ("prompt_tokens", "completion_tokens")))
    texts = [reply.text if isinstance(reply, ChatReply) else None for reply in replies]
    if None in texts:
        # Cut-off samples cannot be compared; not knowing is not a fault.
        return Finding("seed", True, "its samples could not be compared", usage)
    if texts[0] != texts[1]:
        return Finding("seed", False, "one seed gives different samples", usage)
    differ = len(set(texts)) > 1
    return Finding("seed", differ, "" if differ else "different seeds give one sample", usage)


async def context(client: OpenAIClient) -> Finding:
    """The longest context in tokens, where the list of models tells it (vLLM's does)."""
    try:
        sdk = client.endpoints.pick("").connection
        listed = await sdk.get("/models", cast_to=object)
    except Exception:  # not every server has such a list
        return Finding("context", True)
    models = at(listed, "data")
    for entry in models if isinstance(models, list) else []:
        if at(entry, "id") == client.model and type(at(entry, "max_model_len")) is int:
            return Finding("context", True, value=at(entry, "max_model_len"))
    return Finding("context", True)


PROBES: dict[str, Callable[[OpenAIClient], Awaitable[Finding]]] = {
    "chat": chat,
    "schema": schema,
    "choice": choice,
    "likelihood": likelihood,
    "seed": seed,
    "context": context,
}


async def _ask(client: OpenAIClient, request: Chat | Choice | Likelihood) -> tuple[Reply, bool]:
    """The reply, and whether nothing will work."""
    # Of announced servers, one may go with the request in hand, and its like be found gone.
    for _ in range(TRIES if client.patience is None else 2 * TRIES):
        await client.ready()
        attempt = await client.attempt(request)
        if not attempt.retry:
            break
    return attempt.reply, attempt.stop


def _why(reply: Reply) -> str:
    return f"{reply.kind}: {reply.message}" if isinstance(reply, Failure) else type(reply).__name__
