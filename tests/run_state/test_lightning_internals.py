"""The private attributes that the project depends on do what it takes them for."""

import signal
from datetime import timedelta
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.demos.boring_classes import BoringModel
from lightning.pytorch.plugins.environments import LightningEnvironment
from lightning.pytorch.strategies import DDPStrategy

from run_state import lightning_internals as internals


class Steps(L.Callback):
    """Notes the step that loggers are given, at the start of a batch."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, int]] = []

    def on_train_batch_start(self, trainer: L.Trainer, *_: object) -> None:
        trainer.fit_loop.epoch_loop._batches_that_stepped += 5
        internals.realign_logged_steps(trainer)
        self.seen.append((trainer.fit_loop.epoch_loop._batches_that_stepped, trainer.global_step))


def trainer(folder: Path, *callbacks: L.Callback) -> L.Trainer:
    quiet: dict[str, Any] = {
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "logger": False,
    }
    return L.Trainer(
        default_root_dir=folder,
        accelerator="cpu",
        max_steps=3,
        callbacks=[*callbacks],
        **quiet,
    )


def test_steps_of_the_loggers(tmp_path: Path) -> None:
    steps = Steps()
    trainer(tmp_path, steps).fit(BoringModel())
    assert steps.seen == [(0, 0), (1, 1), (2, 2)]


def test_handlers_stay(tmp_path: Path) -> None:
    def mine(*_: object) -> None: ...

    class Look(L.Callback):
        seen: object = None

        def on_train_start(self, *_: object) -> None:
            self.seen = signal.getsignal(signal.SIGTERM)

    look, before = Look(), signal.signal(signal.SIGTERM, mine)
    try:
        fit = trainer(tmp_path, look)
        internals.leave_signals_alone(fit)
        fit.fit(BoringModel())
    finally:
        signal.signal(signal.SIGTERM, before)
    assert look.seen is mine


def test_ranks_do_not_ask_each_other_for_signals(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Lightning's loop calls this in every batch if there are several."""
    asked: list[int] = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: asked.append(src))
    fit = trainer(tmp_path)
    fit.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    internals.leave_signals_alone(fit)
    fit.fit_loop.epoch_loop._broadcast_sigterm_tensor()
    assert asked == [0]


def test_unused_parameters_are_expected_unless_the_graph_is_static() -> None:
    for given, expected in (({}, True), ({"find_unused_parameters": False}, True), ({"static_graph": True}, None)):
        strategy = DDPStrategy(**given)
        internals.expect_unused_parameters(strategy)
        assert strategy._ddp_kwargs.get("find_unused_parameters") is expected


def test_the_average_is_a_copy_of_the_module(tmp_path: Path) -> None:
    class Look(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            self.names = [name for name, _ in internals.average_model(averaging).module.named_parameters()]

    averaging, look, module = WeightAveraging(), Look(), BoringModel()
    trainer(tmp_path, averaging, look).fit(module)
    assert look.names == [name for name, _ in module.named_parameters()]


def test_averages_are_blended_in_place() -> None:
    averages, weights = [torch.zeros(2), torch.ones(1)], [torch.ones(2), torch.tensor([3.0])]
    kept = averages[0]
    internals.blend(averages, weights, 0.75)
    assert kept.tolist() == [0.25, 0.25] and averages[1].tolist() == [1.5]


def test_tensors_of_several_types_are_copied_in_place() -> None:
    targets = [torch.zeros(2), torch.zeros((), dtype=torch.int64)]
    internals.copy(targets, [torch.ones(2), torch.tensor(7)])
    assert targets[0].tolist() == [1, 1] and targets[1].item() == 7
    internals.copy([], [])


def test_hosts_talk_without_their_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    strategy = DDPStrategy(timeout=timedelta(minutes=3), parallel_devices=[torch.device("cuda", 0)])
    strategy.cluster_environment = LightningEnvironment()
    asked: dict[str, Any] = {}
    monkeypatch.setattr(torch.distributed, "new_group", lambda **given: asked.update(given))
    internals.group_of_hosts(strategy)
    assert asked == {"backend": "gloo", "timeout": timedelta(minutes=3)}
