"""No training step makes the host wait for its GPU: each training runs on a GPU that does not exist, and is watched.

Tensors on it have shapes and types, but no numbers (PyTorch's `FakeTensorMode`). Whatever reads a number, or copies
between main memory and the GPU while the host waits, passes `Waits` and is noted with its place in the code. All of
Lightning's loop runs, with the shipped callbacks and as one of two ranks; of the backward pass alone, which needs a
driver, only the gradients are made. Boolean masks, `nonzero` and the like, which wait as well, are errors there.
"""

import traceback
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.distributed import _InfiniteBarrier
from lightning.pytorch.accelerators import Accelerator
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import Tensor, nn
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensor, FakeTensorMode
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from torch.utils._pytree import tree_leaves

from callbacks.throughput import Throughput
from commands.cli import SuperFERCLI
from datamodules.faces.augmentation import LandmarkAugmentation
from datamodules.ferplus.dataset import FERPlusDataset
from datamodules.upscaled_cache import FaceCache
from run_state.checkpoints import LatestCheckpoint
from run_state.metrics_csv import MetricsCSV
from tests.tiny_runs import classifier_options, config, generator_options

GPU = torch.device("cuda", 0)
BATCHES, LOG_EVERY = 6, 3
aten = torch.ops.aten


class Waits(TorchDispatchMode):
    """Note what the host waits for, and what crosses to the GPU meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[str] = []
        self.sent = 0  # bytes

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is aten._local_scalar_dense.default:
            return self._read(func, args[0])
        result = func(*args, **kwargs)
        if func in (aten._to_copy.default, aten.copy_.default):
            tensors = [leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)]
            if len({tensor.device.type for tensor in tensors}) > 1:
                if not kwargs.get("non_blocking") or result.device.type == "cpu":
                    self.seen.append(f"{func} in {_place()}")
                self.sent += args[0].numel() * args[0].element_size()
        return result

    def _read(self, func: Any, tensor: Tensor) -> Any:
        if tensor.device.type != "cpu":
            self.seen.append(f"a number was read in {_place()}")
        else:
            with suppress(DataDependentOutputException):  # of a tensor in main memory whose number is not known, either
                return func(tensor)
        return {torch.bool: True, torch.float32: 1.0}.get(tensor.dtype, 0)


def _place() -> str:
    frames = [frame for frame in traceback.extract_stack()[:-2] if "/torch/" not in frame.filename]
    return " <- ".join(
        f"{Path(frame.filename).name}:{frame.lineno}" for frame in frames[:-6:-1] if frame.filename != __file__
    )


class FakeGPU(Accelerator):
    """One GPU of which nothing is asked."""

    def setup_device(self, device: torch.device) -> None: ...

    def teardown(self) -> None: ...

    def get_device_stats(self, device: Any) -> dict[str, Any]:
        return {}

    @staticmethod
    def parse_devices(devices: Any) -> list[int]:
        return [0]

    @staticmethod
    def get_parallel_devices(devices: Any) -> list[torch.device]:
        return [GPU]

    @staticmethod
    def auto_device_count() -> int:
        return 1

    @staticmethod
    def is_available() -> bool:
        return True

    @staticmethod
    def name() -> str:
        return "fake"


class OnFakeGPU(SingleDeviceStrategy):
    """Train there, as one of two ranks, from the moment at which a process would take its GPU."""

    def __init__(self, modes: ExitStack, waits: Waits) -> None:
        super().__init__(device=GPU)
        self.world_size = 2
        self.modes, self.waits = modes, waits

    def setup_environment(self) -> None:
        self.modes.enter_context(FakeTensorMode(allow_non_fake_inputs=True))
        self.modes.enter_context(self.waits)
        super().setup_environment()


def make_gradients(module: L.LightningModule, loss: Tensor) -> None:
    """Stand in for the backward pass."""
    assert loss.requires_grad
    for parameter in module.parameters():
        if parameter.requires_grad:
            parameter.grad = torch.zeros_like(parameter)


class PerBatch(L.Callback):
    """Note the waits and the bytes sent from the start of one batch to that of the next, which is fetched meanwhile."""

    def __init__(self, waits: Waits) -> None:
        self.waits, self.batches, self.sent = waits, list[list[str]](), list[int]()

    def on_train_batch_start(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step:
            self.batches.append(self.waits.seen)
            self.sent.append(self.waits.sent)
        self.waits.seen, self.waits.sent = [], 0


def really(function: Callable[..., Any]) -> Callable[..., Any]:
    """Have a function work on real tensors."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with _disable_current_modes():
            return function(*args, **kwargs)

    return run


@pytest.fixture
def two_ranks(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Have what a rank asks of the others be answered, and leave out what makes sense with numbers only."""
    torch.distributed.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    monkeypatch.setattr(torch.distributed, "new_group", lambda **_: torch.distributed.group.WORLD)
    monkeypatch.setattr(
        _InfiniteBarrier, "__enter__", lambda barrier: barrier
    )  # it would end the group that it is given
    monkeypatch.setattr("run_state.checkpoints.gather", lambda _, own: [own, own])
    monkeypatch.setattr(LatestCheckpoint, "_save", lambda *_: None)
    monkeypatch.setattr("callbacks.throughput._peak_memory", lambda _: 0.0)
    monkeypatch.setattr(L.LightningModule, "backward", make_gradients)
    for kind, name in ((FERPlusDataset, "__getitems__"), (FaceCache, "fill")):  # which know no GPU here
        monkeypatch.setattr(kind, name, really(getattr(kind, name)))
    apply = nn.Module._apply

    def once(module: nn.Module, fn: Any, recurse: bool = True) -> nn.Module:  # fake parameters cannot move again
        there = [isinstance(parameter, FakeTensor) for parameter in module.parameters()]
        return module if there and all(there) else apply(module, fn, recurse)

    def copied(tensor: Tensor, memo: dict[int, Any]) -> Tensor:  # what is real cannot be copied under the mode
        with _disable_current_modes():
            return real[type(tensor)](tensor, memo)

    real = {Tensor: Tensor.__deepcopy__, nn.Parameter: nn.Parameter.__deepcopy__, FakeTensor: lambda t, _: t.clone()}
    monkeypatch.setattr(nn.Module, "_apply", once)
    monkeypatch.setattr(Tensor, "__deepcopy__", copied)
    monkeypatch.setattr(nn.Parameter, "__deepcopy__", copied)
    yield
    torch.distributed.destroy_process_group()


def watched(arguments: list[str], folder: Path, precision: Any) -> PerBatch:
    """Train five batches of a configuration on the GPU that does not exist."""
    cli = SuperFERCLI("train", [*arguments, f"--runs={folder}"])
    cli.instantiate()
    cli.datamodule.setup("fit")
    if isinstance(cli.datamodule.augmentation, LandmarkAugmentation):
        cli.datamodule.augmentation.jpeg = None  # coded on the CPU: the one change that a GPU waits for
    waits = Waits()
    per_batch, made = PerBatch(waits), cli.config_init
    with ExitStack() as modes:
        trainer = L.Trainer(
            accelerator=FakeGPU(),
            strategy=OnFakeGPU(modes, waits),
            precision=precision,
            max_steps=BATCHES,
            log_every_n_steps=LOG_EVERY,
            limit_val_batches=0,
            use_distributed_sampler=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            logger=MetricsCSV(folder),
            callbacks=[
                per_batch,
                *(made.trainer.callbacks or []),
                made.finite,
                made.latest,
                Throughput(),
                LearningRateMonitor("step"),
            ],
        )
        modes.enter_context(made.latest.preemption.listening(trainer))
        trainer.fit(cli.model, datamodule=cli.datamodule)
    return per_batch


FACE = 64 * 64 * 3 + 68 * 2 * 4 + 8 + 10 * 4  # uint8 pixels, landmarks, index, draws
NOISE = 8 * 8 * 4
EMOTION = 32 * 32 + 8 * 4 + 8 + 8  # uint8 pixels, target, label, index
TRAININGS: dict[str, tuple[str, int, tuple[str, ...]]] = {
    "hourglass": ("generator/hourglass", FACE, ()),
    "hourglass on gray faces": ("generator/hourglass_ferplus", FACE, ()),
    "dic": ("generator/dic", FACE, ()),
    "dic on degraded faces": ("generator/dic_ferplus", FACE + NOISE, ()),
    "dicgan": ("generator/dicgan", FACE, ()),
    "dicgan, small": ("generator/dicgan_small", FACE, ()),
    "classifier": ("classifier/bilinear", EMOTION, ()),
    "classifier with mixup": ("classifier/bilinear", EMOTION, ("--model.mixup=0.4",)),
}


@pytest.mark.parametrize("precision", ["bf16-mixed", "32-true"])
@pytest.mark.parametrize("name", TRAININGS)
def test_no_step_waits(
    name: str, precision: str, tiny_faces: Path, tiny_ferplus: Path, tmp_path: Path, two_ranks: None
) -> None:
    file, sample, more = TRAININGS[name]
    if file.startswith("classifier"):
        small = classifier_options(tiny_ferplus)
    else:
        small = generator_options(tiny_faces, file.partition("/")[2].partition("_")[0])
    per_batch = watched([*config(file), *small, "--data.batch_size=4", *more], tmp_path, precision)
    _, *batches = per_batch.batches  # in the first one, constants are made that stay
    assert len(batches) == BATCHES - 2
    for number, waits in enumerate(batches, start=1):
        if (number + 1) % LOG_EVERY:
            assert not waits, f"batch {number}"
        else:  # what is logged is read, and the gradients' norms since the last time at once
            assert len([wait for wait in waits if "finite_gradients" in wait]) == 1
    assert per_batch.sent[3] == 2 * sample  # each rank has two of the four
