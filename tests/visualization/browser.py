"""A headless Chromium driven through its own pipe, without a package: pages are opened, clicked, and looked at."""

from __future__ import annotations

import base64
import io
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
FLAGS = (
    "--headless --no-sandbox --use-angle=swiftshader --enable-unsafe-swiftshader --hide-scrollbars --no-first-run "
    "--disable-background-networking --disable-component-update --disable-dev-shm-usage --remote-debugging-pipe"
)
SECONDS = 60  # until the browser must have answered
NO_BROWSER = "no Chromium here: `apt-get install chromium`, or name one in PCDET_EXT_BROWSER"


def find_browser() -> str | None:
    """The browser's program, or None."""
    return os.environ.get("PCDET_EXT_BROWSER") or next(filter(None, map(shutil.which, NAMES)), None)


class Browser:
    """One tab of a running browser; messages are JSON, each ended by a zero byte (DevTools protocol)."""

    def __init__(self, reading: int, writing: int) -> None:
        self._reading, self._writing = reading, writing
        self._number, self._held = 0, b""
        self._session: str | None = None
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """The answer to a command."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": parameters}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._writing, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._message())
            if answer.get("id") == self._number:
                assert "error" not in answer, f"{method}: {answer['error']}"
                return answer["result"]

    def _message(self) -> bytes:
        while b"\0" not in self._held:
            ready, _, _ = select.select([self._reading], [], [], SECONDS)
            part = os.read(self._reading, 1 << 20) if ready else b""
            assert part, "the browser does not answer"
            self._held += part
        message, _, self._held = self._held.partition(b"\0")
        return message

    def run(self, script: str) -> Any:
        """The value of an expression in the page."""
        answer = self.send("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def open(self, page: Path, size: tuple[int, int], wishes: str = "") -> None:
        """Open a page in a window of this size, and wait until its picture is drawn."""
        width, height = size
        self.send("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.send("Page.navigate", url="about:blank")
        self.send("Page.navigate", url=f"{page.resolve().as_uri()}#{wishes}")
        self.wait("window.viewer && window.viewer.drawn > 0")

    def wait(self, condition: str) -> None:
        """Wait until an expression is true."""
        for _ in range(SECONDS * 20):
            if self.run(f"Boolean({condition})"):
                return
            time.sleep(0.05)
        raise AssertionError(f"never true: {condition}")

    def picture(self) -> np.ndarray:
        """What is seen, uint8 [height, width, 3], when all is drawn."""
        self.run("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
        data = self.send("Page.captureScreenshot", format="png")["data"]
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data))).convert("RGB"))

    def pointer(self, x: float, y: float, *kinds: str, button: str = "none") -> None:
        """Events of the pointer at a place: mouseMoved, mousePressed, mouseReleased."""
        for kind in kinds:
            held = {"button": button, "buttons": 1, "clickCount": 1} if button != "none" else {}
            self.send("Input.dispatchMouseEvent", type=kind, x=x, y=y, **held)

    def click(self, selector: str) -> None:
        """Click in the middle of an element."""
        x, y = self.run(f"(r => [r.x + r.width / 2, r.y + r.height / 2])({_rectangle(selector)})")
        self.pointer(x, y, "mousePressed", "mouseReleased", button="left")

    def slide(self, selector: str, share: float) -> None:
        """Press a slider at a share of its length."""
        x, y, width, height = self.run(f"(r => [r.x, r.y, r.width, r.height])({_rectangle(selector)})")
        thumb = 16  # its middle cannot come nearer to the ends than half of this
        place = x + thumb / 2 + share * (width - thumb)
        self.pointer(place, y + height / 2, "mousePressed", "mouseReleased", button="left")

    def text(self, selector: str) -> str:
        """The text of an element."""
        return str(self.run(f"document.querySelector({json.dumps(selector)}).textContent"))


def _rectangle(selector: str) -> str:
    return f"document.querySelector({json.dumps(selector)}).getBoundingClientRect()"


@contextmanager
def browser(program: str, folder: Path) -> Iterator[Browser]:
    """A running browser whose profile is in a folder; it is ended afterwards."""
    to_browser, writing = os.pipe()
    reading, from_browser = os.pipe()

    def as_three_and_four() -> None:  # the descriptors that Chromium reads commands from and writes answers to
        kept = os.dup(from_browser), os.dup(to_browser)
        os.dup2(kept[1], 3)
        os.dup2(kept[0], 4)

    process = subprocess.Popen(
        [program, *FLAGS.split(), f"--user-data-dir={folder}"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        close_fds=False,
        preexec_fn=as_three_and_four,
        start_new_session=True,
    )
    os.close(to_browser)
    os.close(from_browser)
    try:
        yield Browser(reading, writing)
    finally:
        os.close(writing)
        os.close(reading)
        process.terminate()
        process.wait(SECONDS)
