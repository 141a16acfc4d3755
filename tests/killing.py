"""Run commands in processes that kill themselves at a chosen moment."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import forks
import torch
from safetensors.torch import load_file

# A process that forks once per attempt. The child kills itself ``delay`` seconds after a moment,
# wherever it is then: a stage's first step from a given one on, the opening of the token cache, the drawing of samples,
# or ("") its own start. The process prints how each attempt ended.
DRIVER = """
import json, os, signal, sys, threading, time
from nextscale import api
from nextscale_cli.main import app
from nextscale.training import run, step as stepping

def hook(module, name, kill, when=lambda *told: True):
    real = getattr(module, name)
    def hooked(*told, **named):
        if when(*told):
            kill()
        return real(*told, **named)
    setattr(module, name, hooked)

def attempt(command, moment, step, delay):
    def kill_soon():
        threading.Timer(delay, os.kill, (os.getpid(), signal.SIGKILL)).start()
    started = time.perf_counter()
    child = os.fork()
    if child == 0:
        try:
            if moment in ("tokenizer", "transformer"):
                reached = lambda self, batches: self.stage.name == moment and self.step >= step
                hook(stepping.Stepper, "train_step", kill_soon, reached)
            elif moment == "caching":
                hook(run, "open_or_write_tokens", kill_soon)
            elif moment == "sampling":
                hook(api, "generate", kill_soon)
            elif moment == "":
                kill_soon()
            app(command)
        except SystemExit as error:
            os._exit(error.code or 0)
        except BaseException as error:
            print(repr(error), file=sys.stderr)
        os._exit(99)
    status = os.waitpid(child, 0)[1]
    return os.waitstatus_to_exitcode(status), time.perf_counter() - started

for each in json.loads(sys.argv[1]):
    print(json.dumps(attempt(*each)), flush=True)
"""

Attempt = tuple[list[str], str, int, float]
"""A command; the moment; the step, if the moment is a stage; the delay in seconds."""


def attempt_all(attempts: list[Attempt]) -> list[tuple[int, float]]:
    """Exit code (negative for a signal) and seconds of each attempt, one after another."""
    plan = json.dumps(attempts)
    done = forks.run(DRIVER, plan)
    assert done.returncode == 0 and "Traceback" not in done.stderr, done.stderr
    lines = [line for line in done.stdout.splitlines() if line.startswith("[")]
    ends = [tuple(json.loads(line)) for line in lines]
    if any(code not in (0, -9) for code, _ in ends):
        print("\n".join(line for line in done.stderr.splitlines() if "error" in line.lower()))
    return ends


def resuming(folder: Path, settings: list[str]) -> list[str]:
    return ["train", "--resume", "auto", "--out", str(folder), *settings]


def run_attempts(folder: Path, settings: list[str], attempts: list[tuple[str, int, float]]) -> list[tuple[int, float]]:
    """As ``attempt_all``, of attempts to train the same run."""
    return attempt_all([(resuming(folder, settings), *each) for each in attempts])


def assert_equal_weights(a: Path, b: Path) -> None:
    for stage in ("tokenizer", "transformer"):
        left, right = (load_file(run / stage / "model.safetensors") for run in (a, b))
        assert left.keys() == right.keys()
        assert all(torch.equal(left[name], right[name]) for name in left), stage


def losses(run: Path) -> list[tuple[Any, ...]]:
    found = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [(line["stage"], line["kind"], line["step"], line["loss"]) for line in found]
