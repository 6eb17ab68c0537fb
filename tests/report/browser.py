"""Headless Chromium, driven over its debugging pipe: real clicks and keys, and everything it loads or complains of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
KEYS = {"Tab": ("Tab", 9, ""), "Enter": ("Enter", 13, "\r"), " ": ("Space", 32, " ")}


class Browser:
    """One tab. `requests` and `complaints` are of the page that was opened last."""

    def __init__(self, profile: Path) -> None:
        assert BROWSER is not None
        ours_read, theirs_write = os.pipe()
        theirs_read, ours_write = os.pipe()
        # The browser reads commands from descriptor 3 and answers on 4; a shell puts them there.
        command = [
            "bash", "-c", f'exec "$@" 3<&{theirs_read} 4>&{theirs_write} 2>/dev/null', "bash", BROWSER, "--headless",
            "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update",
            "--disable-sync", "--no-first-run", "--host-resolver-rules=MAP * ~NOTFOUND", f"--user-data-dir={profile}",
            "--remote-debugging-pipe", "about:blank",
        ]  # fmt: skip
        self._process = subprocess.Popen(command, pass_fds=(theirs_read, theirs_write), stdout=subprocess.DEVNULL)
        for theirs in (theirs_read, theirs_write):
            os.close(theirs)
        self._out, self._in = ours_write, os.fdopen(ours_read, "rb")
        self._number, self._rest = 0, b""
        self._session: str | None = None
        self.requests: list[str] = []
        self.complaints: list[str] = []
        (target,) = [t for t in self.call("Target.getTargets")["targetInfos"] if t["type"] == "page"]
        self._session = self.call("Target.attachToTarget", targetId=target["targetId"], flatten=True)["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def close(self) -> None:
        os.close(self._out)
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._in.close()

    def call(self, method: str, **parameters: Any) -> Any:
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._out, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._read()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return answer["result"]

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            part = os.read(self._in.fileno(), 1 << 16)
            assert part, "the browser has gone"
            self._rest += part
        raw, self._rest = self._rest.split(b"\0", 1)
        event: dict[str, Any] = json.loads(raw)
        name, told = event.get("method"), event.get("params", {})
        if name == "Network.requestWillBeSent":
            self.requests.append(told["request"]["url"])
        elif name in {"Runtime.exceptionThrown", "Runtime.consoleAPICalled", "Log.entryAdded"}:
            self.complaints.append(json.dumps(told)[:500])
        return event

    def open(self, page: Path, fragment: str = "", width: int = 1280, dark: bool = False) -> None:
        """A fresh page whose first list is drawn."""
        self.call("Page.navigate", url="about:blank")
        self.call("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])
        self.requests, self.complaints = [], []
        self.call("Page.navigate", url=page.resolve().as_uri() + fragment)
        self.until("document.getElementById('count') && document.getElementById('count').textContent")

    def run(self, script: str) -> Any:
        """The value of an expression; a promise is waited for."""
        done = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in done, done["exceptionDetails"]
        return done["result"].get("value")

    def until(self, condition: str) -> None:
        """Wait until an expression is true, looking after every frame; 600 frames at most."""
        waiting = f"""new Promise((done) => {{ let left = 600; const look = () =>
            (({condition}) || !--left ? done(left > 0) : setTimeout(look, 16)); look(); }})"""
        assert self.run(waiting), f"never came true: {condition}"

    def click(self, selector: str) -> None:
        """The left button, in the middle of an element."""
        x, y = self.run(
            f"""(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: "center"}});
            const b = e.getBoundingClientRect(); return [b.x + b.width / 2, b.y + b.height / 2]; }})()"""
        )
        for kind in ("mousePressed", "mouseReleased"):
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)

    def press(self, key: str) -> None:
        code, number, text = KEYS[key]
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, code=code, windowsVirtualKeyCode=number,
                **({"text": text} if text and kind == "keyDown" else {}),
            )  # fmt: skip

    def type(self, text: str) -> None:
        """Into what has the focus."""
        for letter in text:
            self.call("Input.dispatchKeyEvent", type="keyDown", key=letter, text=letter)
            self.call("Input.dispatchKeyEvent", type="keyUp", key=letter)

    def focused(self) -> str:
        return str(
            self.run(
                "(() => { const e = document.activeElement; return e.id || e.getAttribute('href') || e.closest('[id]')?.id || e.tagName; })()"
            )
        )
