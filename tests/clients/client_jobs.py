"""Jobs of client programs: each runs once, however many tests and pytest workers ask for what it found."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

PROGRAMS = Path(__file__).parent / "client_programs"
COMMAND = str(Path(sys.executable).with_name("superpod-run"))
TIMEOUT = 110  # seconds; a job takes three to ten on an idle machine


@dataclass(frozen=True)
class Outcome:
    """What a job printed: its lines of JSON, read, and the rest as it stands."""

    code: int
    lines: list[dict[str, Any]]
    text: str

    @staticmethod
    def read(text: str) -> Outcome:
        found = json.loads(text)
        return Outcome(found["code"], found["lines"], found["text"])

    def verdict(self, client: str) -> dict[str, Any]:
        """What the job found about a client; fails with all that it said when there is none."""
        found = [line for line in self.lines if line.get("client") == client]
        assert len(found) == 1, f"{len(found)} verdicts on {client}; the job said:\n{self.text[-6000:]}"
        return found[0]


class Jobs:
    """The jobs of one test run, kept in a folder that its pytest workers share."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.folder = folder
        self.digits = folder / "digits.npy"

    def run(self, n: int, program: str, dtype: str, *args: str) -> Outcome:
        """What came of `superpod-run -n N PROGRAM digits dtype args`: from the first who asks, for all others."""
        kept = self.folder / "-".join([str(n), program, dtype, *(Path(arg).name for arg in args)])
        with open(self.folder / f"{kept.name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not kept.exists():
                command = [COMMAND, "-n", str(n), str(PROGRAMS / program), str(self._images()), dtype, *args]
                kept.write_text(json.dumps(_outcome(command, self.folder)))
        return Outcome.read(kept.read_text())

    def _images(self) -> Path:
        """A file with the images and digits: scikit-learn takes a second to import, once is enough."""
        with open(self.folder / "digits.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not self.digits.exists():
                import numpy as np
                from sklearn.datasets import load_digits

                pixels, digits = load_digits(return_X_y=True)
                np.save(self.digits, np.column_stack([pixels, digits]))
        return self.digits


def _outcome(command: list[str], folder: Path) -> dict[str, Any]:
    env = os.environ | {"TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}
    done = subprocess.run(
        command,
        env=env,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT,
        check=False,
    )
    found = [line[line.index("{") :] for line in done.stdout.splitlines() if line.startswith('[0] {"')]
    return {"code": done.returncode, "lines": [json.loads(line) for line in found], "text": done.stdout}
