"""Models loaded in this process, each once: the sessions of one command share them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from autointerp.clients.encoder import EncoderClient
from autointerp.config import SubjectSettings
from autointerp.pipeline.demo_model import demo_subject
from autointerp.subject.load import SubjectModel, load_subject
from autointerp.types import Client, Server

DEMO = "demo"


@dataclass
class Models:
    chat_clients: dict[str, Client | Server] = field(default_factory=dict, repr=False)
    """Of the models that chats were asked, by what they were made from."""
    _subjects: dict[tuple[str, str, str, int | None], SubjectModel] = field(default_factory=dict, repr=False)
    _encoders: dict[tuple[str, str], EncoderClient] = field(default_factory=dict, repr=False)

    def subject(
        self, name: str, how: SubjectSettings, random_seed: int | None = None, *, device: str | None = None,
        say: Callable[[str], None] | None = None,
    ) -> SubjectModel:  # fmt: skip
        """`device`, where it is not the one of the settings (a process of several); DEMO names the demo's model. `say`
        is told when it has to be loaded."""
        told = f"loading {name}{' with random weights' if random_seed is not None else ''}"
        name = str(demo_subject()) if name == DEMO else name
        where = device or how.device
        key = (name, where, how.dtype, random_seed)
        if key not in self._subjects:
            if say:
                say(told)
            self._subjects[key] = load_subject(name, device=where, dtype=how.dtype, random_seed=random_seed)
        return self._subjects[key]

    def encoder(self, name: str, device: str) -> EncoderClient:
        """A sentence encoder; it remembers what it has embedded."""
        if (name, device) not in self._encoders:
            self._encoders[name, device] = EncoderClient(name, device=device)
        return self._encoders[name, device]
