"""What each process has of its own comes back: metrics of several processes are summed for one."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torchmetrics.classification import MulticlassAccuracy

from run_state.process_state import ProcessState


class Module(L.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.train_acc = MulticlassAccuracy(3, average="micro")
        self.val_acc = MulticlassAccuracy(3, average="micro")


GUESS, TRUTH = torch.tensor([0, 1, 2, 0, 1]), torch.tensor([0, 1, 1, 1, 1])


def saved(module: Module) -> dict[str, Any]:
    state = ProcessState()
    state.setup(SimpleNamespace(lightning_module=module, world_size=1), module, "fit")  # type: ignore[arg-type]
    return state.state_dict()["ranks"][0]


@pytest.mark.parametrize("processes", [1, 2])
def test_metrics_of_the_epoch_under_way(processes: int, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    modules = [Module() for _ in range(processes)]
    for module, guess, truth in zip(modules, GUESS.chunk(processes), TRUTH.chunk(processes), strict=True):
        module.train_acc.update(guess, truth)
        module.val_acc.update(guess, truth)
    state, resumed = ProcessState(), Module()
    state.load_state_dict({"ranks": [saved(module) for module in modules]})
    state.on_train_start(SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True), resumed)  # type: ignore[arg-type]
    whole = Module()
    whole.train_acc.update(GUESS, TRUTH)
    for name, value in whole.train_acc.metric_state.items():
        assert torch.equal(resumed.train_acc.metric_state[name], value)  # type: ignore[arg-type]
    assert resumed.val_acc.metric_state["tp"].sum() == 0, "of a validation nothing is left"  # type: ignore[union-attr]
    assert ("a run saved with 2" in capsys.readouterr().out) == (processes == 2)


def test_random_numbers() -> None:
    module, state = Module(), ProcessState()
    torch.manual_seed(3)
    before = saved(module)
    drawn = torch.rand(2)
    state.load_state_dict({"ranks": [before]})
    state.on_train_start(SimpleNamespace(world_size=1, global_rank=0, is_global_zero=True), module)  # type: ignore[arg-type]
    assert torch.equal(torch.rand(2), drawn)
