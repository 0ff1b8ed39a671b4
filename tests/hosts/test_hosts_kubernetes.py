"""examples/kubernetes.json: an Indexed Job as Kubernetes' API has it, whose command becomes one job on its pods."""

from __future__ import annotations

import json

import pytest
from namespaces import ROOT

MANIFEST = json.loads((ROOT / "examples/kubernetes.json").read_text())
SERVICE, JOB = MANIFEST["items"]
POD = JOB["spec"]["template"]["spec"]
CONTAINER = POD["containers"][0]
INDEX = "metadata.annotations['batch.kubernetes.io/job-completion-index']"

# What the API server would accept of the fields that are used: Kubernetes API reference, batch/v1 Job and v1 Service.
FIELDS = {
    "List": {"apiVersion": "v1", "kind": str, "items": list},
    "Service": {
        "apiVersion": "v1", "kind": str, "metadata": {"name": str},
        "spec": {
            "clusterIP": str, "publishNotReadyAddresses": bool, "selector": dict, "ports": [{"name": str, "port": int}],
        },
    },
    "Job": {
        "apiVersion": "batch/v1", "kind": str, "metadata": {"name": str, "annotations": dict},
        "spec": {
            "completionMode": "Indexed", "completions": int, "parallelism": int, "backoffLimit": int,
            "template": {"spec": {
                "subdomain": str, "restartPolicy": "Never",
                "containers": [{
                    "name": str, "image": str, "command": [str], "args": [str],
                    "env": [{"name": str, "valueFrom": dict}],
                    "resources": {"requests": {"cpu": str, "memory": str}},
                }],
            }},
        },
    },
}  # fmt: skip


def misfits(value, schema, where=""):
    """Where a value is not what the schema says: unknown or missing fields, wrong types."""
    if isinstance(schema, dict):
        found = [f"{where}.{key}: not a field" for key in value.keys() - schema.keys()]
        found += [f"{where}.{key}: missing" for key in schema.keys() - value.keys()]
        return found + [
            m for key in schema.keys() & value.keys() for m in misfits(value[key], schema[key], f"{where}.{key}")
        ]
    if isinstance(schema, list):
        return [m for i, item in enumerate(value) for m in misfits(item, schema[0], f"{where}[{i}]")]
    fits = isinstance(value, schema) if isinstance(schema, type) else value == schema
    return [] if fits else [f"{where}: {value!r} is not {schema}"]


def test_the_manifest_fits_the_schema():
    assert [m for item in (MANIFEST, SERVICE, JOB) for m in misfits(item, FIELDS[item["kind"]])] == []
    assert misfits({"kind": 1}, {"kind": str, "spec": int}, "x") == [
        "x.spec: missing",
        "x.kind: 1 is not <class 'str'>",
    ]


def test_its_parts_name_one_another():
    name, service = JOB["metadata"]["name"], SERVICE["metadata"]["name"]
    assert SERVICE["spec"]["selector"] == {"job-name": name}
    assert POD["subdomain"] == service
    assert JOB["spec"]["completions"] == JOB["spec"]["parallelism"] == int(CONTAINER["args"][1])
    assert f"{name}-0.{service}:{SERVICE['spec']['ports'][0]['port']}" in CONTAINER["args"]
    assert CONTAINER["env"][0]["valueFrom"]["fieldRef"]["fieldPath"] == INDEX


def test_its_command_becomes_one_job(cluster):
    cluster.script("train_digits.py", """
        import socket
        import superpod
        comm = superpod.init()
        comm.barrier()
        print(comm.rank, socket.gethostname())
    """)  # fmt: skip
    secret = "ab" * 32
    jobs = [
        cluster.start(*CONTAINER["args"], on=host, env={"PET_NODE_RANK": str(index), "SUPERPOD_SECRET": secret})
        for index, host in enumerate("abcd")
    ]
    ended = [cluster.finish(job) for job in jobs]
    assert [job.code for job in ended] == [0] * 4, ended[0].err
    assert ended[0].lines == sorted(f"[{r}@{'abcd'[r // 8]}] {r} {'abcd'[r // 8]}" for r in range(32))


@pytest.mark.parametrize("name", ["command", "env"])
def test_the_schema_misses_what_is_left_out(name):
    lacking = json.loads(json.dumps(JOB))
    del lacking["spec"]["template"]["spec"]["containers"][0][name]
    assert misfits(lacking, FIELDS["Job"]) == [f".spec.template.spec.containers[0].{name}: missing"]
