"""What a pass of DIC costs, in counts that no machine changes."""

from collections import Counter

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode

from models.dic import DIC, normalise

STEPS, GROUPS, FUSIONS = 3, 3, 2
HOURGLASS_CONVOLUTIONS = 57
SIZES = dict(num_features=4, num_steps=STEPS, num_groups=GROUPS, num_fusion_blocks=FUSIONS, hourglass_features=8)


class Calls(TorchDispatchMode):
    """Counts the operations that PyTorch carries out, views left out."""

    def __init__(self) -> None:
        super().__init__()
        self.count: Counter[str] = Counter()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        if not operation.is_view:
            self.count[operation.overloadpacket._qualified_op_name.removeprefix("aten::")] += 1
        return operation(*args, **(kwargs or {}))


@pytest.fixture
def net() -> DIC:
    return DIC(**SIZES).to(memory_format=torch.channels_last)  # type: ignore[call-overload]


@pytest.fixture
def face() -> torch.Tensor:
    return torch.rand(1, 3, 16, 16).contiguous(memory_format=torch.channels_last)


@torch.no_grad()
def test_operations_of_an_upscaling(net: DIC, face: torch.Tensor) -> None:
    with Calls() as calls:
        net.upscale(face)
    merges = STEPS * 2 * (GROUPS - 1) + 2 * STEPS  # of several features in each block, and at its two ends
    assert calls.count["addmm"] == merges
    assert calls.count["addmm_"] == STEPS * 2 * sum(range(1, GROUPS)) + STEPS * (GROUPS - 1) + (STEPS - 1)
    assert calls.count["cat"] == (STEPS - 1) + 2  # the hourglass' input; the mean colour, subtracted and added
    assert calls.count["_prelu_kernel"] == calls.count["copy_"]  # in place; and nothing else is copied
    assert calls.count["leaky_relu_"] == (STEPS - 1) * (1 + FUSIONS)
    projections = STEPS * 2 * GROUPS
    fusion = (STEPS - 1) * (1 + 2 * FUSIONS)
    images = 1 + 2 * STEPS
    assert calls.count["convolution"] == projections + fusion + images + (STEPS - 1) * HOURGLASS_CONVOLUTIONS
    in_place = calls.count["_prelu_kernel"] + calls.count["copy_"]  # a few rows at a time
    assert calls.count.total() - in_place <= 360


@torch.no_grad()
def test_multiplications_of_an_upscaling(net: DIC, face: torch.Tensor) -> None:
    with FlopCounterMode(display=False) as upscaling:
        net.upscale(face)
    with FlopCounterMode(display=False) as all_steps:
        net(normalise(face))
    with FlopCounterMode(display=False) as hourglass:
        net.HG(torch.zeros(1, 3, 128, 128), torch.zeros(1, 8, 32, 32))
    assert upscaling.get_total_flops() == all_steps.get_total_flops() - hourglass.get_total_flops() == 145_222_656


def test_a_training_keeps_no_copies_of_features(net: DIC, face: torch.Tensor) -> None:
    """Of those on the fine grid, F,16h,16w: what convolutions read, and what the PReLUs after the merges do."""
    fine = 4 * 256 * 256
    kept: dict[int, int] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes() // 4
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        net(normalise(face))
    assert max(kept.values()) == fine
    assert sum(size == fine for size in kept.values()) == STEPS * (3 * GROUPS - 2)
