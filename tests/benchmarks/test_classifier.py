"""The benchmark runs and reports what it measured with its settings. How fast anything is is not tested."""

import json

import pytest

from benchmarks import classifier


def test_it_prints_what_it_measured_as_json(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(classifier, "BATCH", 24)
    monkeypatch.setattr(classifier, "WARM_UP", 0)
    monkeypatch.setattr(classifier, "SIZES", (32, 384))
    shipped = classifier.arguments
    small = ["--data.input_size=32", "--data.batch_size=24", "--model.width=8"]
    monkeypatch.setattr(classifier, "arguments", lambda *args: [*shipped(*args), *small])
    monkeypatch.setenv("WANDB_MODE", "disabled")  # which it sets
    classifier.main(["--rounds", "1", "--faces", "72", "--precision", "32-true"])
    result = json.loads(capsys.readouterr().out)
    assert 0 < result["loop"]["lowest"] <= result["loop"]["ratio"] <= result["loop"]["highest"]
    assert result["start_s"]["imports"] > 0 and result["start_s"]["to_first_batch"] > 0
    assert all(rate > 0 for rate in result["faces_per_s_and_core"].values())
    assert result["settings"]["threads"] and result["options"]["faces"] == 72
