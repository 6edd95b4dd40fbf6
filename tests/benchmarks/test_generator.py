"""The benchmark runs and reports ratios with their settings. What they are is not tested."""

import json

import pytest

from tests import benchmark_generator as generator


def test_it_prints_ratios_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = dict(num_features=4, num_steps=2, num_groups=1, num_fusion_blocks=1, hourglass_features=8)
    monkeypatch.setitem(generator.SIZES, "small", sizes)
    generator.main(["--hr_size", "64", "--batch_size", "2", "--repeats", "2"])
    printed = json.loads(capsys.readouterr().out)
    for what in ("training", "inference", "preparation"):
        assert 0 < printed[what]["lowest"] <= printed[what]["ratio"] <= printed[what]["highest"]
    assert printed["settings"]["hr_size"] == 64 and printed["settings"]["malloc"]


def test_ratio_says_how_many_times_as_fast(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr(generator.time, "perf_counter", lambda: clock[0])

    def takes(seconds: float) -> None:
        clock[0] += seconds

    result = generator.compare(lambda: takes(2.0), lambda: takes(3.0), repeats=3)
    assert result == {"ratio": 1.5, "lowest": 1.5, "highest": 1.5, "ours_s": 2.0}
