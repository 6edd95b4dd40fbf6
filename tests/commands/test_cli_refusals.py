"""What cannot work ends in exit code 2 and a message, before a folder is made or W&B is started."""

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import wandb

from commands.compare import compare
from commands.test import test as run_test
from commands.train import train
from commands.upscale import upscale
from datamodules.ferplus.datamodule import FERPlusDataModule
from tests.tiny_runs import classifier_args, generator_args, run_record, write_generator


@pytest.fixture(autouse=True)
def nothing_may_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wandb, "init", lambda **_: pytest.fail("W&B was started"))


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--data.batch_size=eight", "data.batch_size is eight, expected int"),
        ("--trainer.max_epochs=ten", "trainer.max_epochs is ten, expected int"),
        (
            "--model.arch=resnet19",
            "is resnet19, expected resnet18, resnet34, resnet50; did you mean 'resnet18'?",
        ),
        ("--model.arhc=resnet18", "model: Option 'arhc' is not accepted; did you mean 'arch'?"),
        ("--model.optimizer.learn=1", "--optimizer.learn=1; did you mean 'optimizer.lr'?"),
        ("--model=lightning_modules.classifier.EmotionClassifer", "did you mean 'EmotionClassifier'?"),
        ("--data.upscaler=bilinaer", "bilinear, bicubic, an import path; did you mean 'bilinear'?"),
        ("--data.upscaler=datamodules.upscalers.DICUpscaler", "the following arguments are required: checkpoint"),
        ("--data.upscaler.color=gray", "data.upscaler.color is not accepted by what data.upscaler is now"),
        ("--trainer.max_epoch=3", "--trainer.max_epoch=3; did you mean 'trainer.max_epochs'?"),
        ("--resum=RUN", "there is no option --resum; did you mean '--resume'?"),
        ("--best.monitor=val/ac", "expected one of val/acc, val/macro_f1, val/ece, val/loss; did you mean 'val/acc'?"),
        ("--config=configs/clasifier/bilinaer.yaml", "did you mean 'configs/classifier/bilinear.yaml'?"),
        ("--trainer.plugins=[x]", "trainer.plugins is x, expected an import path"),
        ("--trainer.callbacks=[{class_path: callbacks.weight_average.WeightAvrage}]", "did you mean 'WeightAverage'?"),
    ],
)
def test_a_wrong_setting_is_said_in_one_line_with_the_nearest_name(
    wrong: str, message: str, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(train, classifier_args(tiny_ferplus, tmp_path / "runs", wrong), capsys)
    assert said.count("\n") == 1 and said.rstrip().endswith(message)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("seed_everything: 0\nseed_everything: 7\n", "line 2: the key 'seed_everything' is given twice"),
        ("tags: " + "[" * 3000 + "]" * 3000, "nest"),  # in our words, or in those of newer YAML parsers
        ("trainer:\n  max_epoch: 3\n", "does not accept option 'max_epoch'; did you mean 'trainer.max_epochs'?"),
        ("data:\n  init_args:\n    batchsize: 3\n", "'batchsize' is not accepted; did you mean 'batch_size'?"),
        ("model:\n  clas_path: x\n", "'clas_path' is not accepted; did you mean 'class_path'?"),
    ],
)
def test_a_wrong_file_is_said_in_one_line(
    text: str, message: str, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "more.yaml").write_text(text)
    args = classifier_args(tiny_ferplus, tmp_path / "runs", f"--config={tmp_path / 'more.yaml'}")
    said = refused(train, args, capsys)
    assert said.count("\n") == 1 and message in said


def test_a_pipe_in_the_place_of_a_configuration(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    args = classifier_args(tiny_ferplus, tmp_path / "runs", "--config", str(tmp_path / "pipe"))
    assert "pipe cannot be read (it is not a regular file)" in refused(train, args, capsys)


@pytest.mark.parametrize("command", [run_test, train, compare])
@pytest.mark.parametrize("name", ["loop", "z" * 5000])
def test_a_path_that_leads_nowhere(
    command: object, name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    option = {run_test: ["--ckpt_path"], train: ["--resume"]}.get(command, [])
    assert len(refused(command, [*option, str(tmp_path / name)], capsys)) <= 300


def refused(command: object, args: list[str], capsys: pytest.CaptureFixture[str]) -> str:
    """The message with which a command ends."""
    capsys.readouterr()
    with pytest.raises(SystemExit) as exit_:
        command(args)  # type: ignore[operator]
    assert exit_.value.code == 2
    assert "SUPERFER_RUN_FOLDER" not in os.environ
    message = capsys.readouterr().err
    assert "Traceback" not in message and message.count("error:") == 1
    assert message.splitlines()[-1].startswith("error: ") and "usage:" not in message
    return message


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--model.freeze_hourglass=-1", "freeze_hourglass is -1, expected 0 or more"),
        ("--model.net.num_features=0", "num_features is 0"),
        ("--data.heatmap_sigma=0", "heatmap_sigma is 0.0, expected more than 0 and at most 16"),
        ("--model.optimizer.lr=0", "optimizer.lr is 0.0, expected a positive number"),
        (
            "--trainer.callbacks=[{class_path: callbacks.weight_average.WeightAverage, init_args: {decay: 3.0}}]",
            "decay is 3.0, expected 0 up to",
        ),
        ("--trainer.max_epochs=-1", "trainer.max_epochs and trainer.max_steps are -1 (no end), expected a limit"),
    ],
)
def test_what_a_class_says_of_its_settings_is_all_that_is_said(
    wrong: str, message: str, tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    said = refused(train, generator_args(tiny_faces, tmp_path / "runs", wrong), capsys)
    assert [line for line in said.splitlines() if line.startswith("error: ")] == [said.splitlines()[-1]]
    assert message in said and "Union" not in said and len(said.splitlines()[-1]) < 200


def test_a_reason_beside_types_that_did_not_apply_is_not_lost(
    tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one = "{class_path: callbacks.weight_average.WeightAverage, init_args: {decay: 3.0}}"  # a list is tried first
    args = generator_args(tiny_faces, tmp_path / "runs", f"--trainer.callbacks={one}")
    assert "decay is 3.0, expected 0 up to" in refused(train, args, capsys)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--trainer.max_epoch=3"], "max_epoch"),
        (["--data.rot=x"], "Option 'rot' is not accepted"),
        (["--data.upscaler=bilinaer"], "bilinaer"),
        (["--config=missing.yaml"], "missing.yaml"),
        (["--trainer.max_epochs=few"], "trainer.max_epochs"),
        (["--best.save_top_k=2"], "best.save_top_k is 2, expected 1"),
        (["--best.filename=step-{step}"], "best.filename is 'step-{step}', expected 'best'"),
        (["--best.mode=min"], "best.mode is 'min', expected 'max' for val/acc"),
        (["--trainer.default_root_dir=elsewhere"], "default_root_dir is 'elsewhere', expected None"),
        (["--trainer.use_distributed_sampler=true"], "use_distributed_sampler is True, expected False"),
        (["--experiment="], "experiment is '', expected a plain name"),
        (["--experiment=../x"], "experiment is '../x', expected a plain name"),
        (["--experiment=.hidden"], "experiment is '.hidden', expected a plain name"),
        (["--experiment=a\nb"], r"experiment is 'a\nb', expected a plain name"),
        (["--runs="], "runs is '', expected a folder"),
        (["--latest.minutes=.inf"], "latest.minutes is inf, expected 0 or more"),
        (["--latest.minutes=.nan"], "latest.minutes is nan, expected 0 or more"),
        (["--data.num_workers=1000000000"], "num_workers is 1000000000, expected 0 to 512"),
        (["--data.early_epochs=-1"], "early_epochs is -1, expected 0 or more"),
        (["--data.augmentation.rotation=.nan"], "augmentation.rotation is nan, expected 0 to 180"),
        (["--trainer.limit_train_batches=0"], "limit_train_batches is 0, expected more than 0"),
        (["--trainer.limit_train_batches=0.0001"], "limit_train_batches is 0.0001, which leaves none of"),
        (["--trainer.limit_val_batches=0"], "limit_val_batches is 0, expected more than 0"),
        (["--trainer.accumulate_grad_batches=0"], "accumulate_grad_batches is 0, expected at least 1"),
        (["--trainer.check_val_every_n_epoch=0"], "check_val_every_n_epoch is 0, expected at least 1"),
        (["--trainer.val_check_interval=0"], "val_check_interval is 0, expected more than 0"),
        (["--trainer.val_check_interval=3"], "val_check_interval is 3, expected at most the 2 batches of an epoch"),
        (["--trainer.max_steps=0"], "max_steps is 0, expected at least 1, or -1 for no end"),
        (["--trainer.max_epochs=0"], "max_epochs is 0, expected at least 1, or -1 for no end"),
        (["--trainer.min_epochs=9"], "min_epochs is 9, expected at most max_epochs, 1"),
        (["--trainer.gradient_clip_val=.nan"], "gradient_clip_val is nan, expected 0 or more"),
        (["--trainer.log_every_n_steps=-1"], "log_every_n_steps is -1, expected at least 1"),
        (["--trainer.accelerator=tpu"], "torch_xla"),  # which is not installed
        (["--trainer.devices=0"], "value is not a valid input using cpu accelerator"),
        (["--trainer.devices=two"], "trainer: `devices` selected with `CPUAccelerator` should be an int > 0."),
        (["--trainer.max_time=long"], "long"),
        (["--trainer.strategy=dpd"], "dpd"),
        (["--trainer.profiler=x"], "profiler"),
        (["--trainer.overfit_batches=2"], "trainer.overfit_batches is 2, expected 0.0"),
        (
            ["--trainer.callbacks+=StochasticWeightAveraging", "--trainer.callbacks.swa_lrs=0.01"],
            "config.yaml would hold 'device: Unable to serialize instance cpu', which a resumed run cannot read",
        ),
        (["--data.root=nowhere"], "nowhere: no such folder"),
        (["--data.batch_size=1000"], "batch_size is 1000, expected at most the"),
        (
            ["--data.batch_size=7", "--trainer.devices=2", "--trainer.strategy=ddp"],
            "a multiple of the 2 devices",
        ),
        (
            ["--data.batch_size=32", "--trainer.devices=32", "--trainer.strategy=ddp"],
            "the number of validation images is 22, expected at least the 32 devices",
        ),
        (["--data.label_mode=multi_target"], "expected both or neither to be multi_target"),
        (["--seed_everything=1.5"], "1.5"),
        (["--seed_everything=true"], "expected an integer"),
        (["--best.monitor=null"], "best.monitor is None, expected one of val/acc"),
        (["--best.monitor=val/accc"], "best.monitor is 'val/accc', expected one of val/acc"),
        (["--model.optimizer.lr=-1"], "optimizer.lr is -1.0"),
        (["--model.optimizer.schedule=cosin"], "cosin"),
        pytest.param(
            ["--trainer.accelerator=gpu"], "gpu", marks=pytest.mark.skipif(torch.cuda.is_available(), reason="GPU")
        ),
        (["--trainer.precision=12"], "12"),
    ],
)
def test_training(
    more: list[str], message: str, tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert message in refused(train, classifier_args(tiny_ferplus, tmp_path / "runs", *more), capsys)
    assert not list(tmp_path.glob("runs/*/*")), "a run folder was left"


SLURM = {"NTASKS": "1", "JOB_ID": "4711", "PROCID": "0", "LOCALID": "0", "NODEID": "0", "JOB_NAME": "train"}
TORCHRUN = {"TORCHELASTIC_RUN_ID": "job", "WORLD_SIZE": "2", "RANK": "0", "LOCAL_RANK": "0", "GROUP_RANK": "0"}


@pytest.mark.parametrize(
    ("variables", "devices", "message"),
    [
        ({f"SLURM_{name}": value for name, value in SLURM.items()}, 2, "1 x 2 devices need as many processes"),
        (TORCHRUN, 1, "1 x 1 devices need as many processes, but the number of processes is 2"),
    ],
    ids=["slurm without srun", "torchrun"],
)
def test_devices_without_processes(
    variables: dict[str, str],
    devices: int,
    message: str,
    tiny_ferplus: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    more = [f"--trainer.devices={devices}", f"--trainer.strategy={'ddp' if devices > 1 else 'auto'}"]
    assert message in refused(train, classifier_args(tiny_ferplus, tmp_path / "runs", *more), capsys)
    assert not list(tmp_path.glob("runs/*/*/*")), "something was written"


def test_a_fault_of_the_program_is_not_taken_for_one_of_the_input(
    tiny_ferplus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for kind in (TypeError, RuntimeError):
        monkeypatch.setattr(FERPlusDataModule, "check", lambda *_, kind=kind: (_ for _ in ()).throw(kind("ours")))
        with pytest.raises(kind, match="ours"):
            train(classifier_args(tiny_ferplus, tmp_path))


@pytest.mark.parametrize(
    ("command", "options"), [(run_test, ("--ckpt_path", "--split")), (upscale, ("--images", "--config"))]
)
def test_help_is_about_the_options_of_the_command(
    command: Callable[[list[str]], object], options: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        command(["--help"])
    printed = capsys.readouterr().out
    assert end.value.code == 0 and all(f"  {option}" in printed for option in options) and "lightning" not in printed


def test_experiment_is_required(capsys: pytest.CaptureFixture[str]) -> None:
    assert "experiment" in refused(train, ["--model=lightning_modules.classifier.EmotionClassifier"], capsys)


def test_data_of_the_other_kind(
    tiny_ferplus: Path, tiny_faces: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = ["--data=datamodules.faces.FaceLandmarkDataModule", f"--data.train_root={tiny_faces}"]
    args = classifier_args(tiny_ferplus, tmp_path / "runs")
    args = [arg for arg in args if not arg.startswith(("--data.root", "--data.input_size"))]
    message = refused(train, [*args, *faces, f"--data.val_root={tiny_faces}"], capsys)
    assert "data is a FaceLandmarkDataModule, expected a FERPlusDataModule" in message
    ferplus = ["--data=datamodules.ferplus.FERPlusDataModule", f"--data.root={tiny_ferplus}"]
    args = [arg for arg in generator_args(tiny_faces, tmp_path / "runs") if not arg.startswith("--data.")]
    message = refused(train, [*args, *ferplus], capsys)
    assert "data is a FERPlusDataModule, expected a FaceLandmarkDataModule" in message
    assert "upscale needs a FERPlusDataModule" in refused(upscale, generator_args(tiny_faces, tmp_path), capsys)
    assert not (tmp_path / "runs").exists()


def test_generators_that_are_none(tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def message(path: Path) -> str:
        more = [f"--data.upscaler.checkpoint={path}", f"--data.cache_dir={tmp_path / 'cache'}"]
        args = classifier_args(tiny_ferplus, tmp_path / "runs", *more, configs=("classifier/dic",))
        text = refused(train, args, capsys)
        assert refused(upscale, args, capsys).split("error:")[1] == text.split("error:")[1]
        return text

    assert "no checkpoint: looked for" in message(tmp_path / "nothing.ckpt")
    (tmp_path / "run").mkdir()
    assert "checkpoints/best.ckpt and" in message(tmp_path / "run")
    (tmp_path / "damaged.ckpt").write_bytes(b"PK\3\4")
    assert "damaged.ckpt" in message(tmp_path / "damaged.ckpt")
    torch.save({"state_dict": {"net.network.fc.weight": torch.zeros(8, 512)}}, tmp_path / "classifier.ckpt")
    assert "expected a DIC generator" in message(tmp_path / "classifier.ckpt")
    assert not (tmp_path / "runs").exists() and not (tmp_path / "cache").exists()


def test_testing_and_resuming(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "the following arguments are required: --ckpt_path" in refused(run_test, [], capsys)
    assert "no option --ckpt_pth; did you mean '--ckpt_path'?" in refused(run_test, ["--ckpt_pth=x"], capsys)
    assert "did you mean '--split'?" in refused(run_test, ["--ckpt_path=x", "--splt", "val"], capsys)
    assert "did you mean '--images'?" in refused(upscale, ["--image=x"], capsys)
    assert "--config is missing" in refused(train, ["--resume", "auto"], capsys)
    assert "--ckpt_path: expected one argument" in refused(run_test, ["--ckpt_path"], capsys)
    assert "nowhere does not exist" in refused(run_test, ["--ckpt_path", "nowhere"], capsys)
    assert "nowhere does not exist" in refused(train, ["--resume=nowhere"], capsys)
    run = tmp_path / "run"
    (run / "checkpoints").mkdir(parents=True)
    (run / "config.yaml").write_text("experiment: x\n")
    assert "no checkpoint: looked for" in refused(run_test, ["--ckpt_path", str(run)], capsys)
    assert "has no run.json" in refused(train, ["--resume", str(run)], capsys)
    (run / "run.json").write_text(json.dumps(run_record(run)))
    assert "no checkpoint: looked for" in refused(train, ["--resume", str(run)], capsys)
    (run / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    assert "best.ckpt (2 bytes) cannot be read" in refused(run_test, ["--ckpt_path", str(run)], capsys)
    for damaged in ("garbage{", "[]"):
        (run / "run.json").write_text(damaged)
        assert "run.json" in refused(run_test, ["--ckpt_path", str(run)], capsys)
    assert "name the run folder" in refused(train, ["--resume", str(run / "checkpoints" / "best.ckpt")], capsys)
    assert "--allow_change needs --resume" in refused(train, ["--allow_change=seed_everything"], capsys)
    assert f"holds the runs {run.name}" in refused(run_test, ["--ckpt_path", str(tmp_path)], capsys)
    (run / "run.json").write_text(json.dumps(run_record(run, arm=None)))
    assert "is the run of a generator" in refused(run_test, ["--ckpt_path", str(run)], capsys)


def test_unknown_split_and_damaged_checkpoint(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train(classifier_args(tiny_ferplus, tmp_path, "--model=tests.tiny_runs.TinyClassifier"))
    (run / "checkpoints" / "latest.ckpt").unlink()
    (run / "checkpoints" / "previous.ckpt").unlink()
    before = sorted(path.name for path in run.iterdir())
    message = refused(run_test, ["--ckpt_path", str(run), "--split", "tset"], capsys)
    assert "tset" in message
    two = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    message = refused(run_test, ["--ckpt_path", str(run), *two], capsys)
    assert "trainer has 2 devices, expected 1: a test runs on one" in message
    (run / "checkpoints" / "best.ckpt").write_bytes(b"PK")
    assert "best.ckpt (2 bytes) cannot be read" in refused(train, ["--resume", str(run)], capsys)
    assert sorted(path.name for path in run.iterdir()) == before


def test_online_without_a_key(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "online")
    monkeypatch.setenv("NETRC", str(tmp_path / "none"))
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    wandb.teardown()  # it reads its environment once
    assert "W&B has no key" in refused(train, classifier_args(tiny_ferplus, tmp_path / "runs"), capsys)
    wandb.teardown()
    assert not (tmp_path / "runs").exists()


def test_bfloat16_where_it_is_computed_wrongly(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    convolve = F.conv2d

    def wrong(image: torch.Tensor, *args: object, **settings: object) -> torch.Tensor:
        result = convolve(image, *args, **settings)  # type: ignore[arg-type]
        return result * 0 if image.dtype == torch.bfloat16 else result

    monkeypatch.setattr(F, "conv2d", wrong)
    message = "wrongly in bfloat16: start with ONEDNN_MAX_CPU_ISA=AVX512_CORE_BF16, or use float32"
    trained = classifier_args(tiny_ferplus, tmp_path / "runs", "--trainer.precision=bf16-mixed")
    assert message in refused(train, trained, capsys)
    generator = write_generator(tmp_path / "generator.ckpt")
    more = [f"--data.upscaler.checkpoint={generator}", f"--data.cache_dir={tmp_path / 'cache'}"]
    more += ["--data.upscaler.precision=bfloat16"]
    enlarged = classifier_args(tiny_ferplus, tmp_path / "runs", *more, configs=("classifier/dic",))
    for command in (train, upscale):
        assert message in refused(command, enlarged, capsys)
    assert {path.name for path in tmp_path.iterdir()} == {"generator.ckpt"}


def test_a_generator_that_returns_nonsense(
    tiny_ferplus: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Found when its first faces are enlarged."""
    monkeypatch.setenv("WANDB_MODE", "disabled")
    generator = write_generator(tmp_path / "generator.ckpt", broken=True)
    more = [f"--data.upscaler.checkpoint={generator}", f"--data.cache_dir={tmp_path / 'cache'}"]
    args = classifier_args(tiny_ferplus, tmp_path / "runs", *more, configs=("classifier/dic",))
    for command in (upscale, train):
        assert "numbers that are not finite" in refused(command, args, capsys)
    assert not list((tmp_path / "cache").rglob("*.npy"))
