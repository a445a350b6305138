"""A page in a headless Chromium, driven by its DevTools protocol: to look at the report as a reader's browser does."""

import json
import os
import shutil
import subprocess
import tempfile
import time
from base64 import b64decode
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from medgrpo.errors import InputError

NAMES = ("chromium", "chromium-browser", "google-chrome")
PATIENCE = 60.0  # seconds that a busy machine may take for one answer


def find_chromium() -> str | None:
    """Path of a Chromium on this machine; None where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), None)


class Browser:
    """A context manager: one page, empty at first.

    Attributes:
        problems: what the page's console, its scripts and its security policy complained about, as sentences.

    Raises:
        InputError: no Chromium is installed, or it does not start.
    """

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._seen: list[str] = []
        self._count = 0
        self._session: str | None = None

    def __enter__(self) -> Self:
        from websockets.sync.client import connect

        path = find_chromium()
        if path is None:
            raise InputError(
                f"no Chromium found (looked for {', '.join(NAMES)}); install it: apt-get install chromium."
            )
        self._home = tempfile.TemporaryDirectory(prefix="medgrpo-browser-", ignore_cleanup_errors=True)
        sandbox = ["--no-sandbox"] if os.geteuid() == 0 else []
        flags = ["--headless=new", "--disable-gpu", "--hide-scrollbars", "--no-first-run", "--remote-debugging-port=0"]
        command = [path, *sandbox, *flags, f"--user-data-dir={self._home.name}", "about:blank"]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        self._socket = connect(f"ws://127.0.0.1:{self._endpoint()}", max_size=None, proxy=None)
        target = self.send("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.send("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.send(f"{domain}.enable")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._session = None
        self.send("Browser.close")
        self._socket.close()
        self._process.wait(PATIENCE)
        self._home.cleanup()

    def _endpoint(self) -> str:
        """Port and path of the protocol's socket, which the browser writes down when it is ready."""
        file = Path(self._home.name) / "DevToolsActivePort"
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline and self._process.poll() is None:
            if file.is_file() and len(lines := file.read_text().split("\n")) == 2:
                return "".join(lines)
            time.sleep(0.05)
        self._process.terminate()
        raise InputError(f"{find_chromium()} did not start; run it by hand to see why.")

    def send(self, method: str, **parameters: Any) -> dict[str, Any]:
        """Call a method of the protocol and wait for its result."""
        self._count += 1
        message = {"id": self._count, "method": method, "params": parameters}
        self._socket.send(json.dumps(message | ({"sessionId": self._session} if self._session else {})))
        while True:
            reply = self._receive()
            if reply.get("id") == self._count:
                if "error" in reply:
                    raise InputError(f"the browser refuses {method}: {reply['error']['message']}.")
                return reply["result"]

    def _receive(self) -> dict[str, Any]:
        """The next message; events are noted on the way."""
        message = json.loads(self._socket.recv(timeout=PATIENCE))
        self._seen.append(message.get("method", ""))
        details = message.get("params", {})
        match message.get("method"):
            case "Runtime.exceptionThrown":
                self.problems.append(str(details["exceptionDetails"].get("text")))
            case "Runtime.consoleAPICalled":
                self.problems.append(" ".join(str(one.get("value")) for one in details["args"]))
            case "Page.javascriptDialogOpening":
                self.problems.append(f"dialog: {details['message']}")
            case "Log.entryAdded":
                self.problems.append(details["entry"]["text"])
        return message

    def open(self, path: Path, fragment: str = "") -> None:
        """Load a file and wait until it is there."""
        self._seen.clear()
        self.send("Page.navigate", url=path.resolve().as_uri() + fragment)
        while "Page.loadEventFired" not in self._seen:
            self._receive()

    def evaluate(self, expression: str) -> Any:
        """The value of a JavaScript expression in the page."""
        reply = self.send("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        return reply["result"].get("value")

    def press(self, key: str, text: str = "") -> None:
        """Press and release a key, such as Tab, or " " with the text it types."""
        code = {"Tab": 9, "Enter": 13, " ": 32}[key]
        for kind in ("keyDown", "keyUp"):
            typed = {"text": text} if kind == "keyDown" and text else {}
            self.send("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **typed)

    def look(self, width: int, height: int = 900, dark: bool = False, media: str = "screen") -> None:
        """Show the page in a window of this size (CSS pixels), in light or dark, or as printed."""
        features = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self.send("Emulation.setEmulatedMedia", media=media, features=features)
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": False}
        self.send("Emulation.setDeviceMetricsOverride", **size)

    def screenshot(self) -> bytes:
        """What the window shows, as PNG."""
        return b64decode(self.send("Page.captureScreenshot", format="png")["data"])

    def pdf(self) -> bytes:
        """The page as printed."""
        return b64decode(self.send("Page.printToPDF", printBackground=False, preferCSSPageSize=True)["data"])
