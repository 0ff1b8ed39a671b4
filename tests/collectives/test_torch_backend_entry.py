from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch.distributed as dist

from superpod.collectives import torch_backend_entry

REPORT = """
import sys, torch
print("superpod" in torch.distributed.Backend.backend_list, "superpod.collectives.torch_backend" in sys.modules)
"""


def in_fresh_interpreter(code: str, monkeypatch: pytest.MonkeyPatch, autoload: str) -> str:
    monkeypatch.setenv("TORCH_DEVICE_BACKEND_AUTOLOAD", autoload)
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)
    assert run.stderr == ""
    return run.stdout.strip()


def test_import_torch_knows_the_backend_and_does_not_load_it(monkeypatch):
    assert in_fresh_interpreter(REPORT, monkeypatch, "1") == "True False"


def test_without_autoload_importing_the_backend_is_enough(monkeypatch):
    assert in_fresh_interpreter(REPORT, monkeypatch, "0") == "False False"
    assert in_fresh_interpreter("import superpod.collectives.torch_backend" + REPORT, monkeypatch, "0") == "True True"


def test_init_process_group_reaches_the_backend(monkeypatch):
    asked = []

    def create_process_group(options, group_options):
        asked.append((options.group_rank, options.group_size, group_options))
        raise InterruptedError("seen")

    stand_in = SimpleNamespace(create_process_group=create_process_group)
    monkeypatch.setitem(sys.modules, "superpod.collectives.torch_backend", stand_in)
    with pytest.raises(InterruptedError, match="seen"):
        dist.init_process_group("superpod", store=dist.HashStore(), rank=0, world_size=1)
    assert asked == [(0, 1, None)]


def test_registering_again_does_nothing(monkeypatch):
    calls = []
    monkeypatch.setattr(dist.Backend, "register_backend", lambda *args, **kwargs: calls.append(args[0]))
    torch_backend_entry.register()
    assert calls == []
    monkeypatch.setattr(dist.Backend, "backend_list", ["gloo"])
    torch_backend_entry.register()
    assert calls == ["superpod"]


def test_a_torch_without_distributed_is_left_alone(monkeypatch):
    monkeypatch.setattr(dist, "is_available", lambda: False)
    monkeypatch.delattr(dist, "Backend")
    torch_backend_entry.register()


def test_a_torch_that_refuses_is_reported_and_not_broken(monkeypatch, caplog):
    def refuse(*args, **kwargs):
        raise TypeError("no such argument: devices")

    monkeypatch.setattr(dist.Backend, "backend_list", [])
    monkeypatch.setattr(dist.Backend, "register_backend", refuse)
    torch_backend_entry.register()
    assert "torch.distributed has no backend 'superpod': no such argument: devices" in caplog.text
