"""Headless Chromium through its own debugging protocol, with nothing but the standard library."""

import base64
import contextlib
import json
import os
import shutil
import socket
import struct
import urllib.request
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from tests.support.child_process import ChildProcess
from tests.support.ports import free_port
from tests.support.waiting import wait_until

__all__ = ["Browser", "find_chromium"]

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
SOCKET_TIMEOUT_S = 20.0


def find_chromium() -> str:
    """The path of a Chromium; the test is skipped where there is none."""
    for name in NAMES:
        if path := shutil.which(name):
            return path
    pytest.skip("no Chromium here; install one, such as with: apt-get install chromium")


class Browser(ChildProcess):
    """A browser with one page; a context manager."""

    def __init__(self, folder: Path, *, width: int = 1200, height: int = 900, dark: bool = False) -> None:
        self._port = free_port()
        self._numbers = 0
        self._socket: socket.socket
        # Loopback only, since the page under test is the only one it opens; 0 is Chromium's "dark".
        command = [
            find_chromium(),
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-proxy-server",
            f"--remote-debugging-port={self._port}",
            f"--user-data-dir={folder / 'profile'}",
            f"--window-size={width},{height}",
            *(["--blink-settings=preferredColorScheme=0"] if dark else []),
            "about:blank",
        ]
        super().__init__(command, folder / "chromium.log")

    def wait_ready(self) -> None:
        """Connect to the page."""
        page = wait_until(self._page, "Chromium to open its page")
        address = urlsplit(page["webSocketDebuggerUrl"])
        self._socket = socket.create_connection(("127.0.0.1", self._port), timeout=SOCKET_TIMEOUT_S)
        key = base64.b64encode(os.urandom(16)).decode()
        self._socket.sendall(
            f"GET {address.path} HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Key: {key}\r\nSec-WebSocket-Version: 13\r\n\r\n".encode()
        )
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            head += self._receive(1)
        assert b" 101 " in head.splitlines()[0], head

    def stop(self) -> int | None:
        """Hang up and end the browser."""
        with contextlib.suppress(AttributeError):
            self._socket.close()
        return super().stop()

    def open(self, url: str) -> None:
        """Load a page and wait for it."""
        self.call("Page.navigate", url=url)
        self.wait(f"location.href.startsWith({json.dumps(url)}) && document.readyState === 'complete'")

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression."""
        result = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, expression: str) -> Any:
        """Wait for a JavaScript expression to be true."""
        return wait_until(lambda: self.evaluate(expression), expression)

    def press(self, key: str, *, control: bool = False) -> None:
        """Press and release a key by its name, such as Tab."""
        codes = {"Enter": 13, "Tab": 9, "ArrowRight": 39, " ": 32}
        text = {"text": "\r"} if key == "Enter" and not control else {}
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent",
                type=kind,
                key=key,
                windowsVirtualKeyCode=codes[key],
                modifiers=2 if control else 0,
                **(text if kind == "keyDown" else {}),
            )

    def screenshot(self, path: Path) -> None:
        """Write what is seen as a PNG."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))

    def call(self, method: str, **parameters: Any) -> Any:
        """One command of the debugging protocol."""
        self._numbers += 1
        self._send(json.dumps({"id": self._numbers, "method": method, "params": parameters}).encode())
        while True:
            answer = json.loads(self._read())
            if answer.get("id") == self._numbers:
                assert "error" not in answer, answer
                return answer["result"]

    def _page(self) -> Any:
        self.require_running()
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self._port}/json", timeout=2) as answer:
                pages = json.load(answer)
        except OSError:
            return None
        return next((page for page in pages if page["type"] == "page"), None)

    def _send(self, payload: bytes) -> None:
        """One masked text frame, as RFC 6455 asks of clients; a mask of zeros changes nothing."""
        length = len(payload)
        if length < 126:
            head = struct.pack("!BB", 0x81, 0x80 | length)
        else:
            head = struct.pack("!BBH", 0x81, 0x80 | 126, length)
        self._socket.sendall(head + bytes(4) + payload)

    def _read(self) -> bytes:
        """One message, of as many frames as it takes."""
        message = b""
        while True:
            first, length = self._receive(2)
            if length == 126:
                (length,) = struct.unpack("!H", self._receive(2))
            elif length == 127:
                (length,) = struct.unpack("!Q", self._receive(8))
            message += self._receive(length)
            if first & 0x80:
                return message

    def _receive(self, length: int) -> bytes:
        received = b""
        while len(received) < length:
            piece = self._socket.recv(length - len(received))
            assert piece, "Chromium hung up"
            received += piece
        return received
