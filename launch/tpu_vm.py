"""Run an lcx command on all workers of a Cloud TPU VM, made for it and deleted after it.

    python launch/tpu_vm.py NAME --zone us-east5-a --type v5litepod-16 \\
        --runtime v2-alpha-tpuv5-lite --setup 'MOUNT A SHARED FOLDER ON /mnt/runs' \\
        -- lcx train experiments/quickstart.py --out /mnt/runs/quickstart

Needs gcloud, logged in, with a project. docs/launching/tpu_vm.md says more.
"""

import argparse
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

PREEMPTED = 75
"""What a process ends with that was asked to end and has saved its work."""

ROOT = Path(__file__).parents[1]


class Vm:
    """A TPU VM: its gcloud commands. With `dry` they are printed, and not run."""

    def __init__(self, options: argparse.Namespace):
        self.options = options
        self.dry: bool = options.dry_run

    def run(self, *words: str) -> int:
        """The exit code of `gcloud compute tpus WORDS` in the VM's zone."""
        command = ["gcloud", "compute", "tpus", *words, f"--zone={self.options.zone}"]
        print(f"+ {shlex.join(command)}", flush=True)
        return 0 if self.dry else subprocess.run(command).returncode

    def must(self, *words: str) -> None:
        """The same, where only success will do. Raises SystemExit with the exit code."""
        if code := self.run(*words):
            print(f"gcloud ended with {code}: {' '.join(words[:3])}", file=sys.stderr)
            sys.exit(code)

    def state(self, kind: str = "tpu-vm", field: str = "state") -> str:
        """READY, PREEMPTED, ...; nothing where there is no such VM, or in a dry run."""
        words = [kind, "describe", self.options.name, f"--zone={self.options.zone}"]
        command = ["gcloud", "compute", "tpus", *words, f"--format=value({field})"]
        if self.dry:
            return ""
        return subprocess.run(command, capture_output=True, text=True).stdout.strip()

    def create(self) -> None:
        """Make the VM, or queue for it and wait. Raises SystemExit where there will be none."""
        o = self.options
        spot = ["--spot"] if o.spot else []
        kind = f"--accelerator-type={o.type}"
        if not o.queue:
            self.must("tpu-vm", "create", o.name, kind, f"--version={o.runtime}", *spot)
            return
        runtime = f"--runtime-version={o.runtime}"
        words = ["queued-resources", "create", o.name, f"--node-id={o.name}", kind, runtime]
        self.must(*words, *spot)
        while not self.dry and (state := self.state("queued-resources", "state.state")) != "ACTIVE":
            if state in ("FAILED", "SUSPENDED"):
                print(f"the queued resource {o.name} is {state}", file=sys.stderr)
                sys.exit(1)
            time.sleep(o.poll)

    def delete(self) -> int:
        """Delete the VM, and its place in the queue."""
        if self.options.queue:
            words = ["queued-resources", "delete", self.options.name, "--force", "--quiet"]
            return self.run(*words)
        return self.run("tpu-vm", "delete", self.options.name, "--quiet")

    def everywhere(self, command: str) -> int:
        """The exit code of a shell command on all workers at once, the first that is not 0."""
        return self.run("tpu-vm", "ssh", self.options.name, "--worker=all", f"--command={command}")

    def install(self) -> None:
        """Copy the checkout to all workers, with what was changed in it, and install it."""
        with tempfile.TemporaryDirectory() as folder:
            archive = f"{folder}/lcx.tar.gz"
            files = ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
            listed = subprocess.run(files, cwd=ROOT, capture_output=True, check=True).stdout
            there = [f for f in listed.split(b"\0") if f and (ROOT / f.decode()).exists()]
            tar = ["tar", "-czf", archive, "--null", "-T", "-"]
            subprocess.run(tar, cwd=ROOT, input=b"\0".join(there), check=True)
            self.must("tpu-vm", "scp", archive, f"{self.options.name}:lcx.tar.gz", "--worker=all")
        o = self.options
        steps = [
            "rm -rf lcx",
            "mkdir lcx",
            "tar -xzf lcx.tar.gz -C lcx",
            f"{o.python} -m venv lcx-env",
            "lcx-env/bin/pip install --quiet -e lcx 'jax[tpu]'",
            *([o.setup] if o.setup else []),
        ]
        if code := self.everywhere(" && ".join(steps)):
            print(f"the set-up of the workers ended with {code}", file=sys.stderr)
            sys.exit(code)


def main() -> int:
    """Entry point: the exit code."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("name", help="of the TPU VM")
    parser.add_argument("--zone", required=True)
    parser.add_argument("--type", required=True, help="accelerator type, v5litepod-16 for one")
    parser.add_argument("--runtime", required=True, help="software version of the VM")
    parser.add_argument("--spot", action="store_true", help="cheaper, and may be taken away")
    parser.add_argument("--queue", action="store_true", help="as a queued resource")
    parser.add_argument("--setup", help="shell command on each worker, before anything is run")
    parser.add_argument("--python", default="python3.11", help="on the workers; python3.11")
    parser.add_argument("--restarts", type=int, default=10, help="after preemptions; 10")
    parser.add_argument("--keep", action="store_true", help="leave the VM running at the end")
    parser.add_argument("--poll", type=int, default=30, help="seconds between looks at a queue; 30")
    parser.add_argument("--dry-run", action="store_true", help="print the commands only")
    parser.add_argument("command", nargs="+", help="after --")
    options = parser.parse_args()
    vm = Vm(options)
    path = 'PATH="$HOME/lcx-env/bin:$PATH"'
    command = f"cd lcx && {path} LCX_PROCESSES=auto {shlex.join(options.command)}"
    code = 1
    keep = options.keep or bool(vm.state())  # what was there before is not ours to delete
    try:
        if not vm.state():
            vm.create()
        vm.install()
        for _ in range(options.restarts + 1):
            code = vm.everywhere(command)
            lost = code != 0 and not vm.dry and vm.state() != "READY"
            if code != PREEMPTED and not lost:
                break
            if lost:  # a spot VM that was taken away stays, dead
                vm.delete()
                vm.create()
                vm.install()
    finally:
        if not keep:
            vm.delete()
    return code


if __name__ == "__main__":
    sys.exit(main())
