"""Optimisers and schedules: exact learning rates of every shipped configuration, refusals."""

import inspect
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml
from lightning import LightningDataModule
from torch import nn

from lightning_modules.base import Optimization, Task
from tests.tiny_runs import REPOSITORY

THOUSAND: Any = SimpleNamespace(estimated_stepping_batches=1000, max_epochs=10, max_steps=-1)
ENDLESS: Any = SimpleNamespace(estimated_stepping_batches=float("inf"), max_epochs=-1, max_steps=-1)
HALVED = {0: 1e-4, 9_999: 1e-4, 10_000: 5e-5, 20_000: 2.5e-5, 40_000: 1.25e-5}
ONE_CYCLE = {0: 8.000000000000007e-05, 50: 0.0010552313252814155, 100: 0.0019999939076821597, 999: 8e-09}
COSINE = {0: 0.0009900990099009901, 50: 0.0504950495049505, 100: 0.1, 550: 0.04999999999999999}
SHIPPED: dict[str, tuple[str, float, dict[int, float]]] = {  # optimiser, weight decay, rates after so many batches
    "generator/hourglass": ("Adam", 0.0, HALVED | {80_000: 6.25e-6}),
    "generator/dic": ("Adam", 0.0, HALVED | {80_000: 6.25e-6}),
    "generator/dicgan": ("Adam", 0.0, HALVED | {80_000: 1.25e-5}),
    "generator/dicgan_small": ("Adam", 0.0, HALVED | {80_000: 1.25e-5}),
    "generator/hourglass_small": ("Adam", 0.0, ONE_CYCLE),
    "generator/hourglass_ferplus": ("Adam", 0.0, ONE_CYCLE),
    "demo/generator": ("Adam", 0.0, ONE_CYCLE),
    "generator/dic_small": ("Adam", 0.0, {0: 4.000000000000004e-05, 550: 0.0004982566812736911, 999: 4e-09}),
    "generator/dic_ferplus": ("Adam", 0.0, {0: 2.000000000000002e-05, 7: 2.5896851147502286e-05, 999: 2e-09}),
    "classifier/bilinear": ("SGD", 5e-4, COSINE),
    "classifier/dic": ("SGD", 5e-4, COSINE),
    "demo/classifier": ("AdamW", 5e-4, {0: 9.900990099009901e-06, 100: 0.001, 999: 3.046171104803541e-09}),
}


def _configured(name: str) -> Optimization:
    """The optimisation of a file below configs/, over the default of its module."""
    model = yaml.safe_load((REPOSITORY / "configs" / f"{name}.yaml").read_text())["model"]
    module, _, kind = model["class_path"].rpartition(".")
    default = inspect.signature(getattr(import_module(module), kind)).parameters["optimizer"].default
    return replace(default, **model["init_args"].get("optimizer", {}))


def test_every_training_configuration_is_among_the_shipped() -> None:
    files = [path for path in (REPOSITORY / "configs").rglob("*.yaml") if "optimizer" in path.read_text()]
    assert {path.relative_to(REPOSITORY / "configs").with_suffix("").as_posix() for path in files} == set(SHIPPED)


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_rates(name: str) -> None:
    kind, decay, rates = SHIPPED[name]
    settings = _configured(name)
    optimizer, scheduler = settings.build(nn.Conv2d(1, 1, 1).parameters(), THOUSAND)
    assert type(optimizer).__name__ == kind and optimizer.param_groups[0]["weight_decay"] == decay
    found = {step: settings.lr * settings.factor(step, 1000) for step in rates}
    assert found == rates
    for _ in range(7):
        optimizer.step()
        scheduler.step()
    assert optimizer.param_groups[0]["lr"] == settings.lr * settings.factor(7, 1000)


@pytest.mark.parametrize(("length", "warmup"), [(100, 0.1), (40, 0.5), (10, 0.25)])
def test_one_cycle_equals_torch(length: int, warmup: float) -> None:
    optimizer = torch.optim.Adam([torch.nn.Parameter(torch.zeros(1))])
    scheduler = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1.0, total_steps=length, pct_start=warmup, cycle_momentum=False
    )
    rates = []
    for _ in range(length):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        if len(rates) < length:
            scheduler.step()
    settings = Optimization(schedule="onecycle", warmup=warmup)
    assert [settings.factor(step, length) for step in range(length)] == pytest.approx(rates, abs=1e-12)


def test_one_cycle_may_start_at_its_top() -> None:
    assert Optimization(schedule="onecycle", warmup=0.1).factor(0, 10) == 1


def test_schedules_after_their_warmup() -> None:
    constant = Optimization(warmup=0.1)
    assert [constant.factor(step, 100) for step in (5, 10, 99)] == [pytest.approx(0.051 / 0.101), 1.0, 1.0]
    steps = Optimization(schedule="multistep", milestones=(20, 30), warmup=0.1)
    assert [steps.factor(step, 100) for step in (0, 19, 20, 30)] == pytest.approx([0.001 / 0.101, 1.0, 0.5, 0.25])
    assert Optimization(schedule="cosine").factor(100, 100) == 0.0


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW)])
def test_weight_decay_spares_biases_and_normalisation(name: Any, kind: type) -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.PReLU(), nn.Flatten(), nn.Linear(4, 2))
    net[4].bias.requires_grad_(False)
    optimizer, _ = Optimization(name=name, weight_decay=0.3).build(net.parameters(), ENDLESS)
    decayed, others = optimizer.param_groups
    assert type(optimizer) is kind and decayed["weight_decay"] == 0.3 and others["weight_decay"] == 0
    assert {id(p) for p in decayed["params"]} == {id(net[0].weight), id(net[4].weight)}
    assert {id(p) for p in others["params"]} == {id(p) for p in (net[0].bias, *net[1].parameters(), net[2].weight)}
    if kind is torch.optim.SGD:
        assert decayed["nesterov"] and decayed["momentum"] == 0.9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"lr": 0.0}, r"optimizer\.lr is 0\.0, expected a positive number"),
        ({"weight_decay": -1.0}, r"optimizer\.weight_decay is -1\.0, expected 0 or more"),
        ({"warmup": 1.0}, r"optimizer\.warmup is 1\.0, expected 0 up to, but not including, 1"),
    ],
)
def test_impossible_settings_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Optimization(**settings)


def test_a_schedule_that_needs_an_end_refuses_a_trainer_without_one() -> None:
    task, data = Task(), LightningDataModule()
    task.optimizer = Optimization(schedule="multistep", milestones=(3,))
    task.check(data, ENDLESS)
    for settings in (Optimization(schedule="cosine"), Optimization(schedule="onecycle"), Optimization(warmup=0.1)):
        task.optimizer = settings
        task.check(data, THOUSAND)
        with pytest.raises(ValueError, match=r"trainer\.max_epochs and trainer\.max_steps are -1 \(no end\)"):
            task.check(data, ENDLESS)
