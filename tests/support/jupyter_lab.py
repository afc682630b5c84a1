"""A real JupyterLab on a free port of this machine, with folders of its own."""

from __future__ import annotations

import json
import os
import secrets
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import platformdirs

# The news pop-up of JupyterLab asks the network.
PAGE_CONFIG = {"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": True}}

OPTIONS = [
    "--no-browser", "--allow-root", "--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0",
    "--LabApp.expose_app_in_browser=True", "--LabApp.extension_manager=readonly",
    "--LabApp.check_for_updates_class=jupyterlab.NeverCheckForUpdate",
]  # fmt: skip


class Lab:
    """A running server: ``url`` (ends in a slash), ``token`` and ``root``, the folder of its notebooks.

    home: an empty folder for the server's home, configuration and notebooks.
    """

    def __init__(self, home: Path) -> None:
        self.root = home / "notebooks"
        self.root.mkdir(parents=True)
        (home / "config" / "labconfig").mkdir(parents=True)
        (home / "config" / "labconfig" / "page_config.json").write_text(json.dumps(PAGE_CONFIG))
        self._home = home
        self._log = home / "server.log"
        self.token = secrets.token_hex(16)
        for _ in range(3):  # another program may take the free port first
            if self._started():
                return
        raise RuntimeError(f"JupyterLab did not start: {self._log.read_text()[-2000:]}")

    def _started(self) -> bool:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self.url = f"http://127.0.0.1:{port}/"
        address = [f"--ServerApp.port={port}", f"--IdentityProvider.token={self.token}"]
        command = [sys.executable, "-m", "jupyterlab", *OPTIONS, *address, f"--ServerApp.root_dir={self.root}"]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(command, cwd=self.root, env=self._environment(), stdout=log, stderr=log)
        while self._process.poll() is None:
            if self._answers():
                return True
            time.sleep(0.2)
        return False

    def _environment(self) -> dict[str, str]:
        names = {"HOME": "home", "IPYTHONDIR": "ipython", "MPLCONFIGDIR": "matplotlib", "JUPYTER_CONFIG_DIR": "config"}
        names |= {"JUPYTER_DATA_DIR": "data", "JUPYTER_RUNTIME_DIR": "runtime"}
        folders = {name: self._home / folder for name, folder in names.items()}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        # A demo model that was converted once is not converted again.
        cache = os.environ.get("XDG_CACHE_HOME", str(Path(platformdirs.user_cache_dir())))
        return {**os.environ, **{name: str(folder) for name, folder in folders.items()}, "XDG_CACHE_HOME": cache}

    def _answers(self) -> bool:
        try:
            with urllib.request.urlopen(f"{self.url}api/status?token={self.token}", timeout=5):
                return True
        except (urllib.error.URLError, OSError):
            return False

    def stop(self) -> None:
        """End the server and, with it, its kernels."""
        self._process.terminate()
        try:
            self._process.wait(20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
