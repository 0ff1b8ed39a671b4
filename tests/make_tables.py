"""`make tables`: runs the attacks and the losses of hosts; docs/security.md and docs/hosts.md show what was seen.

Needs root and network namespaces, see tests/hosts.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

TESTS = Path(__file__).resolve().parent
for folder in ("interconnect", "hosts"):
    sys.path.insert(0, str(TESTS / folder))

import attacks  # noqa: E402
import losses  # noqa: E402

from doc_tables import noted  # noqa: E402

MADE_BY = ("interconnect/test_security.py", "hosts/test_hosts_loss.py")
EXPRESSION = "under_attack or a_loss_ends"
TABLES = (
    (attacks.TABLE, [attack.title for attack in attacks.ATTACKS]),
    (losses.TABLE, [losses.title(loss, start) for start in (losses.BY_SSH, losses.BY_NODES) for loss in losses.LOSSES]),
)


def main() -> int:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "noted")
        command = [sys.executable, "-m", "pytest", "-n0", "-q", "-k", EXPRESSION, f"--note-tables={file}"]
        ran = subprocess.run([*command, *(str(TESTS / name) for name in MADE_BY)], check=False)
        if ran.returncode:
            return ran.returncode
        for table, order in TABLES:
            table.write(noted(file, table), order)
            print(f"wrote the table of {table.name} in {table.path}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
