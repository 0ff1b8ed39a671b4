"""`make support-table`: runs the probes on superpod and on gloo and writes docs/support.md.

What gloo gave is kept in support_gloo.json beside this file, so that the test of the page need not run gloo again.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from support_calls import Probe, probes
from support_cards import outcomes
from support_page import page
from torch_cards import TorchCards

PAGE = Path(__file__).resolve().parents[2] / "docs/support.md"
GLOO = Path(__file__).with_name("support_gloo.json")


def recorded() -> tuple[dict[Probe, str], str]:
    """What gloo gave, and the version of torch that it came with."""
    record = json.loads(GLOO.read_text())
    return dict(zip(probes(), _expanded(record["outcomes"]), strict=True)), record["torch"]


def record(found: dict[Probe, str]) -> None:
    """Keep what gloo gave: the outcomes in the order of the probes, as runs of equal ones."""
    runs: list[list[str | int]] = []
    for outcome in found.values():
        if runs and runs[-1][0] == outcome:
            runs[-1][1] = int(runs[-1][1]) + 1
        else:
            runs.append([outcome, 1])
    content = {"torch": torch.__version__.partition("+")[0], "outcomes": runs}
    GLOO.write_text(json.dumps(content) + "\n")


def _expanded(runs: list[tuple[str, int]]) -> list[str]:
    return [outcome for outcome, count in runs for _ in range(count)]


def main() -> int:
    cards = TorchCards()
    try:
        print("superpod ...", flush=True)
        superpod = outcomes(cards, "superpod")
        print("gloo: about a minute ...", flush=True)
        record(outcomes(cards, "gloo"))
    finally:
        cards.close()
    PAGE.write_text(page(superpod, *recorded()))
    print(f"wrote {PAGE}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
