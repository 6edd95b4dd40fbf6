"""Schedules as functions of progress."""

import pytest
import torch

from lightning_modules.optimization import one_cycle


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
    assert [one_cycle(step, length, warmup) for step in range(length)] == pytest.approx(rates, abs=1e-12)


def test_one_cycle_of_which_the_first_step_is_the_top() -> None:
    assert one_cycle(0, 10, 0.1) == 1
