"""Print the manifest of a Kubernetes JobSet that runs an lcx command on TPUs or GPUs of GKE.

    python launch/gke.py NAME --image IMAGE --gpu nvidia-h100-80gb --gpus-per-pod 8 --pods 2 \\
        --volume CLAIM -- lcx train experiments/quickstart.py --out /runs/quickstart
    python launch/gke.py NAME --image IMAGE --tpu tpu-v5-lite-podslice --topology 4x4 \\
        --volume CLAIM -- lcx train experiments/quickstart.py --out /runs/quickstart

`... | kubectl apply -f -` starts it. Needs JobSet in the cluster. docs/launching/gke.md says more.
"""

import argparse
import math
import re
import sys
from typing import Any

import yaml

PREEMPTED = 75
"""What a process ends with that was asked to end and has saved its work."""

PORT = 8476


def accelerators(o: argparse.Namespace) -> tuple[int, dict[str, str], dict[str, int]]:
    """How many pods a job has, which nodes they go to, and what each takes. Raises ValueError."""
    if (o.tpu is None) == (o.gpu is None):
        raise ValueError("give either --tpu or --gpu")
    if o.gpu:
        selector = {"cloud.google.com/gke-accelerator": o.gpu}
        return o.pods, selector, {"nvidia.com/gpu": o.gpus_per_pod}
    if not o.topology or not re.fullmatch(r"\d+(x\d+){1,2}", o.topology):
        raise ValueError("--tpu needs --topology, 4x4 or 2x2x2 for one")
    chips = math.prod(map(int, o.topology.split("x")))
    if chips % o.chips_per_pod:
        raise ValueError(f"--topology {o.topology}: no multiple of {o.chips_per_pod} chips a pod")
    selector = {
        "cloud.google.com/gke-tpu-accelerator": o.tpu,
        "cloud.google.com/gke-tpu-topology": o.topology,
    }
    return chips // o.chips_per_pod, selector, {"google.com/tpu": o.chips_per_pod}


def environment(o: argparse.Namespace, pods: int) -> list[dict[str, Any]]:
    """How the processes find each other."""
    if o.tpu:  # GKE tells each pod, and JAX reads it
        return [{"name": "LCX_PROCESSES", "value": "auto"}]
    index = "metadata.annotations['batch.kubernetes.io/job-completion-index']"
    first = f"{o.name}-workers-0-0.{o.name}"  # JobSet's name for the first pod of the first job
    return [
        {"name": "LCX_PROCESSES", "value": str(pods)},
        {"name": "LCX_PROCESS", "valueFrom": {"fieldRef": {"fieldPath": index}}},
        {"name": "JAX_COORDINATOR_ADDRESS", "value": f"{first}:{PORT}"},
    ]


def manifest(o: argparse.Namespace) -> dict[str, Any]:
    """The JobSet. Raises ValueError where the options do not fit together."""
    pods, selector, takes = accelerators(o)
    if o.spot:
        selector = selector | {"cloud.google.com/gke-spot": "true"}
    container: dict[str, Any] = {
        "name": "lcx",
        "image": o.image,
        "command": o.command,
        "env": environment(o, pods),
        "ports": [{"containerPort": PORT}],
        "resources": {"limits": takes},
    }
    pod: dict[str, Any] = {
        "restartPolicy": "Never",
        "terminationGracePeriodSeconds": o.grace,
        "nodeSelector": selector,
        "containers": [container],
    }
    if o.volume:
        container["volumeMounts"] = [{"name": "runs", "mountPath": "/runs"}]
        claim = {"claimName": o.volume}
        pod["volumes"] = [{"name": "runs", "persistentVolumeClaim": claim}]
    # A pod that saved its work, or lost its node, fails its job with the reason PodFailurePolicy;
    # any other end with the reason BackoffLimitExceeded. The JobSet counts the latter alone.
    ends = {"containerName": "lcx", "operator": "In", "values": [PREEMPTED]}
    saved = {"action": "FailJob", "onExitCodes": ends}
    lost = {
        "action": "FailJob",
        "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}],
    }
    job = {
        "parallelism": pods,
        "completions": pods,
        "completionMode": "Indexed",
        "backoffLimit": 0,
        "podFailurePolicy": {"rules": [saved, lost]},
        "template": {"spec": pod},
    }
    again = {
        "name": "preempted",
        "action": "RestartJobSetAndIgnoreMaxRestarts",
        "onJobFailureReasons": ["PodFailurePolicy"],
    }
    return {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": o.name},
        "spec": {
            "failurePolicy": {"maxRestarts": o.restarts, "rules": [again]},
            "network": {"enableDNSHostnames": True, "publishNotReadyAddresses": True},
            "replicatedJobs": [{"name": "workers", "replicas": 1, "template": {"spec": job}}],
        },
    }


def main() -> None:
    """Entry point."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the JobSet")
    parser.add_argument("--image", required=True, help="container image with lcx installed")
    parser.add_argument("--tpu", help="value of cloud.google.com/gke-tpu-accelerator")
    parser.add_argument("--topology", help="of the TPU slice: 4x4, 2x2x2, ...")
    parser.add_argument("--chips-per-pod", type=int, default=4, help="of a TPU host; 4")
    parser.add_argument("--gpu", help="value of cloud.google.com/gke-accelerator")
    parser.add_argument("--gpus-per-pod", type=int, default=8, help="8")
    parser.add_argument("--pods", type=int, default=1, help="with --gpu; 1")
    parser.add_argument("--spot", action="store_true", help="on nodes that may be taken away")
    parser.add_argument("--volume", help="claim of a volume that all pods write to, at /runs")
    parser.add_argument("--restarts", type=int, default=3, help="after failures; 3")
    parser.add_argument("--grace", type=int, default=300, help="seconds to save the work; 300")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    if not re.fullmatch(r"[a-z]([a-z0-9-]{0,38}[a-z0-9])?", options.name):
        parser.error(f"{options.name}: a name has lower-case letters, digits and -, at most 40")
    try:
        yaml.safe_dump(manifest(options), sys.stdout, sort_keys=False)
    except ValueError as error:
        parser.error(str(error))


if __name__ == "__main__":
    main()
