"""Headless Chromium, driven over its debugging pipe with nothing but the standard library."""

from __future__ import annotations

import fcntl
import json
import os
import select
import shlex
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run",
         "--remote-debugging-pipe", "--window-size=1280,900")  # fmt: skip
KEYS = {"Enter": 13, "ArrowRight": 39, "ArrowLeft": 37, "ArrowDown": 40, "ArrowUp": 38, "Escape": 27}


def _moved(end: int) -> int:
    """The same end of a pipe under a high number."""
    high = fcntl.fcntl(end, fcntl.F_DUPFD, 100)
    os.close(end)
    return high


class Browser:
    """One tab. `downloads` is where files that the page saves arrive."""

    def __init__(self, profile: Path, downloads: Path, patience: float = 120) -> None:
        self.patience, self.number, self.rest, self.errors = patience, 0, b"", []
        read_end, self.writer = os.pipe()
        self.reader, write_end = os.pipe()
        # Far from 3 and 4, the numbers that Chromium reads and writes.
        read_end, write_end = _moved(read_end), _moved(write_end)
        command = shlex.join([str(CHROMIUM), *FLAGS, f"--user-data-dir={profile}", "about:blank"])
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {command} 3<&{read_end} 4>&{write_end}"],
            pass_fds=(read_end, write_end), stderr=subprocess.DEVNULL,
        )  # fmt: skip
        os.close(read_end)
        os.close(write_end)
        self.session = ""
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self.session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        self.call("Page.enable")
        self.call("Runtime.enable")
        session, self.session = self.session, ""
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))
        self.session = session

    def __enter__(self) -> Browser:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self.reader)
        os.close(self.writer)

    def call(self, method: str, **parameters: Any) -> dict[str, Any]:
        """One command and its answer. Raises RuntimeError for an error, TimeoutError for silence."""
        self.number += 1
        message: dict[str, Any] = {"id": self.number, "method": method, "params": parameters}
        if self.session:
            message["sessionId"] = self.session
        os.write(self.writer, json.dumps(message).encode() + b"\0")
        until = time.monotonic() + self.patience
        while True:
            answer = self._next(until)
            if answer.get("method") == "Runtime.exceptionThrown":
                self.errors.append(answer["params"]["exceptionDetails"]["text"])
            if answer.get("id") == self.number:
                if "error" in answer:
                    raise RuntimeError(f"{method}: {answer['error']}")
                return answer["result"]

    def _next(self, until: float) -> dict[str, Any]:
        while b"\0" not in self.rest:
            ready, _, _ = select.select([self.reader], [], [], max(0.0, until - time.monotonic()))
            if not ready:
                raise TimeoutError("the browser does not answer")
            found = os.read(self.reader, 1 << 20)
            if not found:
                raise RuntimeError("the browser is gone")
            self.rest += found
        first, self.rest = self.rest.split(b"\0", 1)
        return json.loads(first)

    def evaluate(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        found = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        if "exceptionDetails" in found:
            raise RuntimeError(f"{script}: {found['exceptionDetails']}")
        return found["result"].get("value")

    def wait(self, script: str) -> None:
        """Until an expression is true."""
        until = time.monotonic() + self.patience
        while not self.evaluate(script):
            if time.monotonic() > until:
                raise TimeoutError(script)
            time.sleep(0.02)

    def open(self, path: Path) -> None:
        """Goes to a file and waits until it is loaded."""
        self.call("Page.navigate", url=path.as_uri())
        self.wait(f"location.href === {json.dumps(path.as_uri())} && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """A key, pressed and let go."""
        code = KEYS.get(key, ord(key.upper()[0]))
        about = {"key": key, "windowsVirtualKeyCode": code, "code": key if key in KEYS else ""}
        text = {"text": "\r"} if key == "Enter" else {} if key in KEYS else {"text": key}
        self.call("Input.dispatchKeyEvent", type="keyDown", **about, **text)
        self.call("Input.dispatchKeyEvent", type="keyUp", **about)

    def type(self, text: str) -> None:
        """Text into the field that has the focus."""
        self.call("Input.insertText", text=text)
