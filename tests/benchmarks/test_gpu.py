"""The measurements for a GPU run on a CPU, as small as they work. What they measure is not tested."""

import json
import os
import subprocess
import sys

import pytest

from tests.tiny_runs import REPOSITORY


@pytest.mark.parametrize("stage", ["waits", "steps", "feed", pytest.param("resume", marks=pytest.mark.slow), "ranks"])
def test_every_stage_says_what_it_expected_and_what_it_got(stage: str) -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--tiny", stage]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    run = subprocess.run(command, cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=240)
    machine, *lines = [json.loads(line) for line in run.stdout.splitlines() if line.startswith("{")]
    assert run.returncode == 0 and machine["device"] == "CPU" and lines
    for line in lines:
        assert line["stage"] == stage and "expected" in line
        assert isinstance(line["got"], dict), line
        if stage == "resume":
            assert line["got"] == {"equal_runs": 0, "resumed": 0}


def test_unknown_stages_are_refused() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "speed"]
    run = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    assert run.returncode == 2 and "stages are waits, steps, feed, resume, ranks, not speed" in run.stderr
