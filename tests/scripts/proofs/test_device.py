"""The proof of the device path: what a simulated device shows, what is not run, and what fails."""

import json
import subprocess
from pathlib import Path

from forked_python import run_forked

ROOT = Path(__file__).resolve().parents[3]
SCRIPT = str(ROOT / "scripts" / "proofs" / "device.py")


def test_without_a_gpu_it_shows_what_a_simulated_device_can():
    steps = ["facts", "step", "graphs"]
    ended = run_forked([SCRIPT, "--simulated", "--steps", *steps], timeout=300)
    assert ended.returncode == 0, ended.stderr
    results = [json.loads(line) for line in ended.stdout.splitlines()]
    assert [result["step"] for result in results] == steps
    assert [result["outcome"] for result in results] == ["not run", "passed", "passed"]
    assert all(result["device"] == "simulated" for result in results)


def test_what_fails_fails_the_step():
    from scripts.proofs import device

    failing = device.Step(name="tests", seconds=60, about="", tests=("tests/loader/device/test_none.py",))
    assert device.judged_by_tests(failing, 60)["outcome"] == "failed"
    none = device.Step(name="tests", seconds=60, about="", tests=("tests/loader/device/test_cuda.py::nothing",))
    assert device.judged_by_tests(none, 60)["outcome"] == "failed"
    late = device.judged_by_tests(none, 0.01)
    assert late["failures"] == ["it had not ended after 0.01 seconds"]


def test_a_step_that_says_nothing_has_failed(monkeypatch):
    from scripts.proofs import device

    ended = subprocess.CompletedProcess([], 1, stdout="", stderr="RuntimeError: no GPU\n")
    monkeypatch.setattr(device, "ended_within", lambda *_: ended)
    assert device.on_a_gpu(device.STEPS[0])["failures"] == ["exit code 1: RuntimeError: no GPU"]
