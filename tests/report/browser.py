"""A headless Chromium, driven over the WebDriver protocol with the standard library alone."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

BINARIES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync"),
    "--disable-dev-shm-usage",
)
PATIENCE = 30
"""Seconds for the driver to start."""
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


def missing() -> str:
    """Why no browser can be started; empty if one can."""
    if not any(map(shutil.which, BINARIES)):
        return "needs Chromium (Debian package chromium)"
    return "" if shutil.which("chromedriver") else "needs chromedriver (package chromium-driver)"


class Browser:
    """One browser with one window. Use it as a context manager."""

    def __enter__(self) -> Browser:
        self._profile = tempfile.TemporaryDirectory(ignore_cleanup_errors=True)
        log = Path(self._profile.name, "driver.log")
        with log.open("w") as output:
            command = [shutil.which("chromedriver"), "--port=0"]
            self._driver = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT)
        try:
            self._base = f"http://127.0.0.1:{self._port(log)}/session"
            binary = next(filter(None, map(shutil.which, BINARIES)))
            arguments = [*FLAGS, f"--user-data-dir={self._profile.name}/user", "about:blank"]
            options = {"binary": binary, "args": arguments}
            wanted = {
                "goog:chromeOptions": options,
                "goog:loggingPrefs": {"browser": "ALL", "performance": "ALL"},
            }
            self._base += f"/{self._call('', capabilities={'alwaysMatch': wanted})['sessionId']}"
        except BaseException:
            self._driver.kill()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        try:
            self._call("", method="DELETE")
        finally:
            self._driver.terminate()
            self._driver.wait(PATIENCE)
            self._profile.cleanup()

    def open(self, path: Path) -> float:
        """Open a file; returns the seconds until it was loaded and its scripts had run."""
        start = time.perf_counter()
        self._call("/url", url=path.resolve().as_uri())
        return time.perf_counter() - start

    def run(self, script: str, *arguments: Any) -> Any:
        """What a function body returns; `arguments` holds the arguments."""
        return self._call("/execute/sync", script=script, args=list(arguments))

    def keys(self, *names: str) -> None:
        """Press keys one after the other: characters, or those in `KEYS`."""
        presses = [
            {"type": kind, "value": KEYS.get(name, name)}
            for name in names
            for kind in ("keyDown", "keyUp")
        ]
        self._call("/actions", actions=[{"type": "key", "id": "keyboard", "actions": presses}])

    def view(self, width: int, height: int, *, dark: bool = False) -> None:
        """Set the size of the view and the colour scheme that the user prefers."""
        size = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self._command("Emulation.setDeviceMetricsOverride", **size)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._command("Emulation.setEmulatedMedia", features=[scheme])

    def errors(self) -> list[str]:
        """What the page complained of since the last call."""
        entries = self._call("/se/log", type="browser")
        return [entry["message"] for entry in entries if entry["level"] in ("SEVERE", "WARNING")]

    def requests(self) -> list[str]:
        """Files and servers that were asked for since the last call."""
        entries = [json.loads(x["message"]) for x in self._call("/se/log", type="performance")]
        sent = [x["message"]["params"] for x in entries if x["message"]["method"] == SENT]
        addresses = [params["request"]["url"] for params in sent]
        own = ("chrome", "data:", "about:")  # what the browser's first, empty page is made of
        return [address for address in addresses if not address.startswith(own)]

    def screenshot(self, path: Path, *, whole: bool = False) -> None:
        """Write a PNG of the view, or of the whole page."""
        picture = self._command("Page.captureScreenshot", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(picture["data"]))

    def _port(self, log: Path) -> str:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            _, found, rest = log.read_text().partition("successfully on port ")
            if found and "." in rest:
                return rest.split(".")[0]
            time.sleep(0.05)
        raise RuntimeError(f"chromedriver did not start: {log.read_text()}")

    def _command(self, name: str, **parameters: Any) -> Any:
        return self._call("/goog/cdp/execute", cmd=name, params=parameters)

    def _call(self, path: str, *, method: str = "POST", **body: Any) -> Any:
        data = json.dumps(body).encode() if method == "POST" else None
        request = urllib.request.Request(self._base + path, data, method=method)
        request.add_header("Content-Type", "application/json")
        try:
            with _direct.open(request, timeout=60) as answer:
                return json.load(answer)["value"]
        except urllib.error.HTTPError as error:
            raise RuntimeError(json.load(error)["value"]["message"]) from error


SENT = "Network.requestWillBeSent"
KEYS = {
    **{"Enter": "\ue007", "Escape": "\ue00c", "Tab": "\ue004", " ": " "},
    **{"ArrowDown": "\ue015", "ArrowUp": "\ue013", "End": "\ue010", "Home": "\ue011"},
}
