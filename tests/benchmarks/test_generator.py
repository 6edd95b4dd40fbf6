"""The benchmarks run and report ratios with their settings. What the ratios are is not tested."""

import json

import pytest
import torch

from benchmarks import generator, timing
from models.dic import DIC

SIZES = dict(num_features=4, num_steps=2, num_groups=2, num_fusion_blocks=1, hourglass_features=8)


def tiny() -> DIC:
    torch.manual_seed(0)
    return DIC(**SIZES)


def test_it_prints_the_table_as_json(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "published", tiny)
    monkeypatch.setattr(generator, "LR_SIDES", (8,))
    monkeypatch.setattr(generator, "TRAINING_SIDE", 8)
    monkeypatch.setattr(generator, "gigabytes", lambda make, *_: {"ours": 1.0, "plain": 4.0}[make.__name__])
    monkeypatch.setattr(generator, "apart", lambda function, *arguments: function(*arguments))
    with torch.backends.mkldnn.flags(enabled=False):  # which computes networks this small wrongly on some processors
        generator.main(["--rounds", "2"])
    table = json.loads(capsys.readouterr().out)
    upscaling, training = table["upscaling 8 -> 64"], table["training step, batch 4"]
    for times in (upscaling["float32"], upscaling["bfloat16"], training["ours"]):
        assert 0 < times["lowest"] <= times["ratio"] <= times["highest"]
    assert upscaling["largest_difference_float32"] < 1e-5 and upscaling["psnr_db_bfloat16_to_float32"] > 30
    assert training["memory"] == {"ours_gb": 1.0, "plain_gb": 4.0, "ratio": 0.25}
    assert table["settings"]["threads"] and table["settings"]["malloc"]


def test_plain_and_ours_train_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(generator, "published", tiny)
    monkeypatch.setattr(generator, "TRAINING_SIDE", 8)
    ours, plain = generator.ours().double(), generator.plain().double()
    lr = torch.rand(2, 3, 8, 8, dtype=torch.float64)
    for net in (ours, plain):
        images, heatmaps = net(lr)
        sum(step.square().sum() for step in images + heatmaps).backward()
    for name, parameter in plain.named_parameters():
        torch.testing.assert_close(ours.get_parameter(name).grad, parameter.grad, rtol=1e-9, atol=1e-12)


def test_memory_is_that_of_the_work() -> None:
    needed = generator.apart(generator.gigabytes, torch.nn.Identity, allocate, 200_000_000)
    assert 0.19 < needed < 0.25


def allocate(_: torch.nn.Module, size: int) -> torch.Tensor:
    return lambda: torch.ones(size, dtype=torch.uint8)  # type: ignore[return-value]


def test_ratio_is_to_the_plain_time_of_the_same_round(monkeypatch: pytest.MonkeyPatch) -> None:
    clock, order = [0.0], []
    monkeypatch.setattr(timing.time, "perf_counter", lambda: clock[0])

    def takes(seconds: float, name: str) -> None:
        clock[0] += seconds
        order.append(name)

    result = timing.in_turn({"plain": lambda: takes(4.0, "plain"), "ours": lambda: takes(3.0, "ours")}, rounds=3)
    assert result["ours"] == {"seconds": 3.0, "ratio": 0.75, "lowest": 0.75, "highest": 0.75}
    assert order == ["plain", "ours", "ours", "plain"] * 2
