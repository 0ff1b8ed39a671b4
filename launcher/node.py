"""A node other than 0: superpod-run there is the agent of a head that runs elsewhere."""

from __future__ import annotations

import os
import socket
from dataclasses import replace
from typing import Any

from superpod.interconnect.errors import InvalidValue
from superpod.interconnect.interfaces import local_address
from superpod.interconnect.zmq_agents import AgentCall
from superpod.launcher.facts import facts
from superpod.launcher.far import FarAgent
from superpod.launcher.job import JobSpec
from superpod.launcher.munge import fetch
from superpod.launcher.node_crew import JOIN_WITHIN
from superpod.launcher.node_line import AgentLine
from superpod.launcher.nodes import NodeSpec


def run_node(spec: JobSpec, nodes: NodeSpec) -> int:
    """Join the job, and run this node's cards until it ends. Returns the job's exit code.

    Raises InvalidValue when this host has no address that the others could reach.
    """
    if nodes.by_munge:
        secret, port = fetch(nodes.endpoints, nodes.job, JOIN_WITHIN)
        nodes = replace(nodes, secret=secret, endpoints=((nodes.endpoints[0][0], port),))
    line = AgentLine(AgentCall(nodes.to_connect(), nodes.secret))
    line.send(_introduction(spec, nodes))
    own = {
        "kind": spec.kind,
        "target": spec.target,
        "args": list(spec.args),
        "workdir": os.path.join(os.getcwd(), spec.reach.workdir),
        "more": spec.variables(),
    }
    return FarAgent(line, own=own, first_orders=JOIN_WITHIN + 30).run()


def _introduction(spec: JobSpec, nodes: NodeSpec) -> dict[str, Any]:
    return {
        "event": "join",
        "node": nodes.rank,
        "count": nodes.count,
        "cards": nodes.cards,
        "host": socket.gethostname(),
        "address": _address(spec, nodes.endpoints[0][0]),
        "facts": facts(),
    }


def _address(spec: JobSpec, head: str) -> str:
    """Where the cards of this node can be reached; the head's name may not be known yet, for it may start later."""
    interface = spec.reach.interface or None
    try:
        return local_address(interface, head)
    except InvalidValue:
        return local_address(interface)
