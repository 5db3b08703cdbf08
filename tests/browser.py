"""A real browser for tests: headless Chromium, driven by its command line alone."""

from __future__ import annotations

import html
import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import pytest

_NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
CHROMIUM = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, _NAMES)), None)

needs_browser = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium here: `make browser` installs it, CHROMIUM=path names one"
)

_QUIET = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--disable-component-update",
    "--no-first-run",
    "--hide-scrollbars",
    "--enable-logging=stderr",
]
_SECONDS = 60


def look(page: Path, script: str, *, width: int, dark: bool = False) -> tuple[Any, list[str]]:
    """What the JavaScript expression gives on the loaded page, and the console's messages.

    The page's own rules allow no script: the copy that is loaded has them widened by that much.
    """
    probe = page.with_name(f"probe-{page.name}")
    rules = "default-src 'none';"
    text = page.read_text().replace(rules, f"{rules} script-src 'unsafe-inline';")
    probe.write_text(
        f"{text}<pre id=probed></pre><script>addEventListener('load', () => {{"
        f"document.getElementById('probed').textContent = JSON.stringify({script}) }})</script>"
    )
    done = _run(probe, width, 900, dark, "--dump-dom")
    found = re.search(r'<pre id="probed">(.*?)</pre>', done.stdout, re.DOTALL)
    assert found is not None, f"the page's script gave nothing:\n{done.stderr}"
    console = [line for line in done.stderr.splitlines() if ":CONSOLE" in line]
    return json.loads(html.unescape(found[1])), console


def screenshot(page: Path, picture: Path, *, width: int, height: int, dark: bool = False) -> None:
    """Write the page's upper left corner as a PNG."""
    done = _run(page, width, height, dark, f"--screenshot={picture}")
    assert picture.exists(), done.stderr


def _run(
    page: Path, width: int, height: int, dark: bool, what: str
) -> subprocess.CompletedProcess[str]:
    assert CHROMIUM is not None
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        command = [CHROMIUM, *_QUIET, f"--user-data-dir={profile}", what]
        command += [f"--window-size={width},{height}", *(["--force-dark-mode"] if dark else [])]
        return subprocess.run(
            [*command, page.resolve().as_uri()],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
