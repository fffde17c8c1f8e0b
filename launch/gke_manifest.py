"""Prints the JobSet manifest of launch/gke.sh, as JSON, which every YAML reader takes: no quoting can go wrong in it."""

import json
import math
import os
import re
import sys


def manifest(name: str, command: list[str], env: dict[str, str]) -> dict:
    """A JobSet (jobset.x-k8s.io/v1alpha2) of one indexed Job a slice, with a pod on every host of the slice."""
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", env["TOPOLOGY"]):
        raise SystemExit(f"gke.sh: TOPOLOGY={env['TOPOLOGY']} is no shape such as 2x2x2")
    if not re.fullmatch(r"[1-9]\d*", env["CHIPS"]):
        raise SystemExit(f"gke.sh: CHIPS={env['CHIPS']} is no number of chips")
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", name):
        raise SystemExit(f"gke.sh: NAME={name}: Kubernetes takes small letters, digits and -, at most 40, a letter first")
    chips = int(env["CHIPS"])
    total = math.prod(int(side) for side in env["TOPOLOGY"].split("x"))
    if total % chips:
        raise SystemExit(f"gke.sh: TOPOLOGY={env['TOPOLOGY']} has {total} chips, which hosts of CHIPS={chips} do not divide")
    hosts = total // chips
    selector = {
        "cloud.google.com/gke-tpu-accelerator": env["ACCELERATOR"],
        "cloud.google.com/gke-tpu-topology": env["TOPOLOGY"],
    } | ({"cloud.google.com/gke-spot": "true"} if env["SPOT"] else {})
    container = {
        "name": "jaxgrpo",
        "image": env["IMAGE"],
        "workingDir": "/jaxgrpo",
        "command": ["/jaxgrpo/.venv/bin/jaxgrpo", "train", *command, "hosts.count=0"],
        "ports": [{"containerPort": 8471}, {"containerPort": 8080}],  # between the chips' runtimes, and JAX's coordinator
        "resources": {"requests": {"google.com/tpu": str(chips)}, "limits": {"google.com/tpu": str(chips)}},
    }
    pod = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": 600,  # for the step in progress and its checkpoint
        "nodeSelector": selector,
        "containers": [container],
    }
    job = {
        "parallelism": hosts,
        "completions": hosts,
        "completionMode": "Indexed",
        "backoffLimit": 0,  # one lost pod ends the job; the JobSet starts all of it again
        "podFailurePolicy": {  # but not after an error that a second try meets again
            "rules": [{"action": "FailJob", "onExitCodes": {"containerName": "jaxgrpo", "operator": "In", "values": [1, 2]}}]
        },
        "template": {"spec": pod},
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {
            "name": name,
            "annotations": {"alpha.jobset.sigs.k8s.io/exclusive-topology": "cloud.google.com/gke-nodepool"},
        },
        "spec": {
            "failurePolicy": {
                "maxRestarts": int(env["RESTARTS"]),
                "rules": [{"action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}],
            },
            "replicatedJobs": [{"name": "slice", "replicas": int(env["SLICES"]), "template": {"spec": job}}],
        },
    }


if __name__ == "__main__":
    print(json.dumps(manifest(sys.argv[1], sys.argv[2:], dict(os.environ)), indent=2))
