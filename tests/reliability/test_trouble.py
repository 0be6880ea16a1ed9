"""What a machine, a disk or a number can do to a run: one line, nothing lost."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.rounds import writer
from mgsr.runtime import faults
from mgsr.runtime.errors import ConfigError, DataError, UserError
from mgsr.runtime.locks import locked
from mgsr.training.export import load_run
from mgsr.training.run_folder import open_run_folder, run_folder
from mgsr.training.train import train
from tests.reliability.harness import differences, small_config

Make = Callable[..., ExperimentConfig]
Stopped = Callable[[Path, str], ExperimentConfig]
Capture = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def no_points_left() -> Any:
    yield
    faults.arm("")


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Path:
    config = small_config(tmp_path_factory.mktemp("expected"))
    train(config)
    return run_folder(config)


@pytest.fixture(scope="module")
def stopped(tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """Copies, to be harmed, of a run that a full disk ended at a point; one run is made for each point."""
    made: dict[str, Path] = {}

    def copy(root: Path, point: str) -> ExperimentConfig:
        if point not in made:
            made[point] = tmp_path_factory.mktemp("stopped")
            faults.arm(point)
            with pytest.raises((OSError, UserError), match="No space"):
                train(small_config(made[point]))
            faults.arm("")
        shutil.copytree(made[point], root, dirs_exist_ok=True)
        return small_config(root)

    return copy


# within the epoch of round 1, behind a resume point
WITHIN = "step.begin=full@14"
FULL = ("checkpoint.half@3", "checkpoint.write@200", "shard.begin@4", "best.written", "metrics.half")


@pytest.mark.parametrize("point", FULL)
def test_a_full_disk_is_one_line_and_the_run_goes_on_later(expected: Path, tmp_path: Path, point: str) -> None:
    name, _, visit = point.partition("@")
    faults.arm(f"{name}=full@{visit or 1}")
    config = small_config(tmp_path)
    with pytest.raises(UserError, match=r"No space left on device.*--resume") as caught:
        train(config)
    assert "\n" not in str(caught.value) and not list(tmp_path.rglob(".*.tmp"))
    faults.arm("")
    train(config, resume=True)
    assert differences(expected, run_folder(config)) == []


def test_a_run_folder_in_use_is_refused(make_config: Make) -> None:
    config = make_config("train.epochs=1")
    with locked(run_folder(config)), pytest.raises(UserError, match=r"in use by process \d+ on"):
        train(config)
    assert not (run_folder(config) / "config.yaml").exists()


def test_the_lock_goes_with_the_process(tmp_path: Path) -> None:
    words = "import sys; from pathlib import Path; from mgsr.runtime.locks import locked\n"
    hold = f"{words}with locked(Path(sys.argv[1])):\n    print('held', flush=True); sys.stdin.read()"
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert holder.stdout is not None and holder.stdout.readline() == "held\n"
    with pytest.raises(UserError, match=f"process {holder.pid}"), locked(tmp_path):
        pass
    holder.kill()
    holder.wait()
    with locked(tmp_path):
        pass


def test_a_place_that_cannot_be_written_to_is_one_line(make_config: Make, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        train(make_config(f"run_root={tmp_path}/file/runs", "train.epochs=1"))


@pytest.mark.parametrize("harm", ["remove", "truncate"])
def test_a_damaged_shard_is_written_again_while_the_student_is_who_wrote_it(
    expected: Path, stopped: Stopped, tmp_path: Path, harm: str, capsys: Capture
) -> None:
    # when round 1 is whole, before it is trained on
    config = stopped(tmp_path, "manifest.renamed=full@2")
    shard = run_folder(config) / "scrg/round=1/shard-00000-00001.jsonl"
    if harm == "remove":
        shard.unlink()
    else:
        shard.write_bytes(shard.read_bytes()[:-3])
    train(config, resume=True)
    said = capsys.readouterr().out
    assert f"{shard}" in said and "written again" in said and "2 of 3 shards there already" in said
    assert differences(expected, run_folder(config)) == []


def test_a_shard_that_was_damaged_within_its_epoch_is_named(stopped: Stopped, tmp_path: Path) -> None:
    config = stopped(tmp_path, WITHIN)
    shard = run_folder(config) / "scrg/round=1/shard-00000-00000.jsonl"
    shard.write_text("")
    with pytest.raises(DataError, match=r"shard-00000-00000\.jsonl.*cannot write it again"):
        train(config, resume=True)


def test_a_lost_manifest_is_rebuilt_from_whole_shards_or_refused(
    expected: Path, stopped: Stopped, tmp_path: Path
) -> None:
    config = stopped(tmp_path, WITHIN)
    folder = run_folder(config) / "scrg/round=1"
    (folder / "manifest.json").unlink()
    train(config, resume=True)
    assert differences(expected, run_folder(config)) == []
    other = stopped(tmp_path / "other", WITHIN)
    folder = run_folder(other) / "scrg/round=1"
    (folder / "manifest.json").write_text("{")
    (folder / "shard-00000-00002.jsonl").unlink()
    with pytest.raises(DataError, match="cannot write it again"):
        train(other, resume=True)


def test_a_lost_round_of_the_replay_buffer_is_not_passed_over(tmp_path: Path) -> None:
    replay = ("mixture.kind=adaptive", "mixture.student_fraction_start=0.5")
    config = small_config(tmp_path, *replay)
    faults.arm("step.begin=full@14")
    with pytest.raises(OSError, match="No space"):
        train(config)
    faults.arm("")
    (run_folder(config) / "scrg/round=0/manifest.json").unlink()
    with pytest.raises(DataError, match=r"round=0: its manifest is missing"):
        train(config, resume=True)


def test_a_claimed_folder_forgets_the_data_of_the_first_try(make_config: Make) -> None:
    config = make_config()
    folder = run_folder(config)
    open_run_folder(folder, config, resume=False, data={"train": "old"})
    open_run_folder(folder, config, resume=False, data={"train": "new"})
    assert json.loads((folder / "data.json").read_text()) == {"train": "new"}


def test_ways_out_are_taken_on_resume_and_a_linear_share_is_not_made_longer(
    expected: Path, stopped: Stopped, tmp_path: Path
) -> None:
    config = stopped(tmp_path, WITHIN)
    train(small_config(tmp_path, "scrg.batch_size=1", "train.max_nonfinite_steps=1"), resume=True)
    assert load_config(run_folder(config) / "config.yaml", ["run_root=x"]).scrg.batch_size == 1
    assert differences(expected, run_folder(config)) == []
    for words in (["mixture.kind=linear"], ["scrg.every_n_epochs=2", "train.epochs=3"]):
        there = small_config(tmp_path / "linear", *words)
        longer = small_config(tmp_path / "linear", *words, "train.epochs=5")
        open_run_folder(run_folder(there), there, resume=False)
        (run_folder(there) / "scrg").mkdir()
        with pytest.raises(ConfigError, match=r"train\.epochs: "):
            open_run_folder(run_folder(there), longer, resume=True)
        shutil.rmtree(run_folder(there))


def test_data_that_have_changed_since_are_named(make_config: Make, tmp_path: Path) -> None:
    rows = [{"instruction": f"Say {i}.", "output": f"{i}"} for i in range(20)]
    files = {name: tmp_path / f"{name}.jsonl" for name in ("train", "dev", "test")}
    for path in files.values():
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    words = [f"data.{name}={path}" for name, path in files.items()]
    config = make_config("train.epochs=2", "train.batch_size=8", *words)
    faults.arm("step.begin=full@12")
    with pytest.raises(OSError):
        train(config)
    faults.arm("")
    files["train"].write_text(files["train"].read_text().replace("Say 3.", "Say three."))
    with pytest.raises(UserError, match=r"rows of data\.train are not what it began with"):
        train(config, resume=True)
    files["train"].unlink()
    with pytest.raises(DataError, match="no such file"):
        train(config, resume=True)


def test_memory_that_does_not_suffice_halves_the_batch_and_says_so_once(
    expected: Path, tmp_path: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    revised, calls = writer.revise_batch, iter(range(1000))

    def first_fails(*args: Any, **kwargs: Any) -> Any:
        if next(calls) == 0:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return revised(*args, **kwargs)

    monkeypatch.setattr(writer, "revise_batch", first_fails)
    config = small_config(tmp_path)
    train(config)
    said = capsys.readouterr().out
    assert said.count("out of memory") == 1 and "going on with 1; set scrg.batch_size lower" in said
    records = [
        [json.loads(line) for line in (folder / "scrg/round=0/shard-00000-00000.jsonl").open()]
        for folder in (expected, run_folder(config))
    ]
    assert [r["rollout_ids"] for r in records[0]] == [r["rollout_ids"] for r in records[1]]


def test_another_config_is_refused_key_by_key_and_more_epochs_are_taken(
    make_config: Make, capsys: Capture
) -> None:
    config = make_config("train.epochs=1")
    first = train(config)
    both = r"train\.lr: 0\.01 -> 0\.5, scrg\.passes: 1 -> 2|scrg\.passes.*train\.lr"
    with pytest.raises(ConfigError, match=both):
        train(make_config("train.epochs=1", "train.lr=0.5", "scrg.passes=2"), resume=True)
    with pytest.raises(ConfigError, match=r"train\.epochs"):
        train(make_config("train.epochs=1", "train.max_steps=2"), resume=True)
    longer = train(make_config("train.epochs=3", "trainer.log_every_n_steps=5"), resume=True)
    folder = run_folder(config)
    assert first["steps"] == 4 and longer["steps"] == 12 and longer["scrg"]["rounds"] == 3
    assert "train.epochs: 1 -> 3" in capsys.readouterr().out
    assert json.loads((folder / "metrics-4-steps.json").read_text())["steps"] == 4
    assert load_config(folder / "config.yaml", [f"run_root={config.run_root}"]).train.epochs == 3
    # TensorBoard would keep the first values that it reads
    events = EventAccumulator(str(folder)).Reload()
    session = events.SummaryMetadata(metadata.SESSION_START_INFO_TAG).plugin_data.content
    row = HParamsPluginData.FromString(session).session_start_info.hparams
    assert (row["train.epochs"].number_value, row["trainer.log_every_n_steps"].number_value) == (3, 5)
    assert events.Scalars("hp/rouge_l")[-1].value == pytest.approx(longer["result"]["test"]["rouge_l"])
    assert "train.epochs: 3" in (folder / "hparams.yaml").read_text()
    with pytest.raises(ConfigError, match=r"train\.epochs: 3 -> 2"):
        train(make_config("train.epochs=2"), resume=True)


def test_a_teacher_that_has_changed_is_refused(stopped: Stopped, tmp_path: Path) -> None:
    config = stopped(tmp_path, WITHIN)
    weights = next((tmp_path / "runs/cache").glob("teacher-*[0-9a-f]/model.safetensors"))
    tensors = load_file(weights)
    name = next(iter(tensors))
    tensors[name] = tensors[name] + 1e-3
    save_file(tensors, weights, metadata={"format": "pt"})
    with pytest.raises(UserError, match="the teacher is not the one it began with"):
        train(config, resume=True)


def test_a_moved_run_goes_on_and_still_knows_its_best(expected: Path, stopped: Stopped, tmp_path: Path) -> None:
    config = stopped(tmp_path / "before", WITHIN)
    (tmp_path / "before").rename(tmp_path / "after")
    config.run_root = str(tmp_path / "after/runs")
    train(config, resume=True)
    assert differences(expected, run_folder(config)) == []
    load_run(run_folder(config))
