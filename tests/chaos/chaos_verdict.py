"""Whether what came of a program is right: every result the oracle's, or every survivor told who did what."""

from __future__ import annotations

from collections.abc import Sequence

from chaos_pool import End
from chaos_programs import Call, Fault, Program

SOON = 6.0  # seconds from the first who knows to the last, on a machine that does other things as well


def verdict(program: Program, ends: Sequence[End]) -> str:
    """What is wrong, in words; "" if nothing is."""
    problems = [_without_fault(end) for end in ends]
    if program.fault is not None:
        problems = [_with_fault(program, program.fault, end) for end in ends]
        times = [end.time for end in ends if end.error]
        if times and max(times) - min(times) > SOON:
            problems.append(f"the last rank heard of it {max(times) - min(times):.1f} s after the first one")
    found = sorted({problem for problem in problems if problem}, key=lambda problem: "PeerLost" in problem)[:4]
    head = f"seed {program.seed}, {program.api}, {program.n} ranks: {program.fault}"
    return "\n  ".join([head, *found]) if found else ""


def _without_fault(end: End) -> str:
    if end.compared is not None:
        return ""
    return f"rank {end.rank}: {end.error}: {end.text}" if end.error else f"rank {end.rank} has not ended"


def _with_fault(program: Program, fault: Fault, end: End) -> str:
    if fault.instead is None and end.rank == fault.rank:
        return "" if end.killed else f"rank {end.rank} was not killed: {end}"
    if end.compared is not None:
        return f"rank {end.rank} noticed nothing"
    if not end.error:
        return f"rank {end.rank} has not ended"
    kind, text = end.error, end.text
    if _FUTURE in text:  # torch makes a RuntimeError of what comes through a future
        kind, _, text = text.partition(_FUTURE)[2].partition(": ")
    if fault.instead is None:
        named = f"rank {fault.rank} (" in text and "was killed by SIGKILL" in text
        named |= f"rank {fault.rank} died: its connection broke" in text  # the launcher had no time to look in 0.3 s
        return "" if kind == "PeerLost" and named else f"rank {end.rank}: {end.error}: {end.text}"
    original = next(call for call in program.calls if call.number == fault.number)
    right = kind == "CollectiveMismatch" and _names_both(text, fault, original)
    return "" if right else f"rank {end.rank}: {end.error}: {end.text}"


def _names_both(text: str, fault: Fault, original: Call) -> bool:
    """One half of the sentence is the altered call of the right rank, the other one the call as it should be."""
    assert fault.instead is not None
    one, but, other = text.partition(", but ")
    halves = [one.partition("in group ")[2].partition(": ")[2], other]
    culprit = [half for half in halves if half.startswith(f"rank {fault.rank} called ")]
    rest = [half for half in halves if half not in culprit]
    both = bool(but) and len(culprit) == 1
    return both and _is_call(culprit[0], fault.instead) and _is_call(rest[0], original)


_FUTURE = "Got the following error when running the callback: "
_CALLED = {"message": "send/recv", "coalesced": "all_reduce"}


def _is_call(half: str, call: Call) -> bool:
    """Whether "rank 3 called reduce(5 × int8, sum, root 1) by tree (#7) in …" is about this call."""
    what = half.partition(" called ")[2]
    words = [f"{_CALLED.get(call.kind, call.kind)}("]
    words += [f", {call.op}"] * bool(call.op)
    words += [f"root {call.root}"] * (call.kind in ("broadcast", "reduce", "gather", "scatter"))
    dtypes = {call.dtype, {"complex64": "float32", "complex128": "float64"}.get(call.dtype, call.dtype)}
    right = call.kind == "barrier" or any(
        f"× {dtype}" in what for dtype in dtypes
    )  # torch hands on complex numbers in pairs
    return right and what.startswith(words[0]) and all(word in what for word in words[1:])
