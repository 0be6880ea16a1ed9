"""Files from strangers: what carries code is refused and nothing runs; broken ones are clean errors."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mgsr.cli.main import main
from mgsr.config.load import config_from_tree, load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.models import load_causal_lm
from mgsr.rounds.render import markdown_revision
from mgsr.rounds.store import read_round
from mgsr.runtime.errors import ConfigError, DataError, UserError
from mgsr.runtime.files import write_checked
from mgsr.scrg import RevisedSequence
from mgsr.study.report.content import Content
from mgsr.study.report.tables import Table
from mgsr.study.report.write import filled
from mgsr.training.checkpoint import read_checkpoint, resume_path
from mgsr.training.train import train

Make = Callable[..., ExperimentConfig]


class Payload:
    """Writes a file when it is unpickled."""

    def __init__(self, proof: Path) -> None:
        self.proof = proof

    def __reduce__(self) -> Any:
        return (os.system, (f"touch {self.proof}",))


@pytest.fixture
def proof(tmp_path: Path) -> Path:
    """What a payload would leave behind."""
    return tmp_path / "proof"


def test_the_payload_works(proof: Path) -> None:
    """Otherwise its absence would prove nothing."""
    pickle.loads(pickle.dumps(Payload(proof)))
    assert proof.exists()


def test_a_checkpoint_with_a_payload_is_refused(proof: Path, tmp_path: Path) -> None:
    path = resume_path(tmp_path, 3)
    # by someone who can write checksums too
    write_checked(path, lambda file: torch.save({"state_dict": {}, "x": Payload(proof)}, file))
    with pytest.raises(DataError, match="more than tensors and plain values"):
        read_checkpoint(path)
    write_checked(path, lambda file: file.write(pickle.dumps(Payload(proof))))
    with pytest.raises(DataError, match="refused"):
        read_checkpoint(path)
    assert not proof.exists()


def test_resuming_from_a_checkpoint_with_a_payload_is_one_line(
    make_config: Make, proof: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = make_config("train.epochs=1")
    folder = Path(config.run_root) / config.experiment / "mgsr" / "seed=0"
    train(config)
    (folder / "metrics.json").unlink()
    for path in (folder / "checkpoints").glob("resume-*.ckpt"):
        content = torch.load(path, weights_only=True)
        content["callbacks"]["x"] = Payload(proof)
        write_checked(path, lambda file, content=content: torch.save(content, file))
    capsys.readouterr()
    assert main(["train", "--resume", str(folder)]) == 2
    error = capsys.readouterr().err
    assert "refused" in error and len(error.strip().splitlines()) == 1 and not proof.exists()


def test_a_config_with_a_payload_is_refused(proof: Path, tmp_path: Path) -> None:
    path = tmp_path / "evil.yaml"
    path.write_text(f"train: !!python/object/apply:os.system ['touch {proof}']\n")
    with pytest.raises(ConfigError, match=r"evil\.yaml:1: not valid YAML"):
        load_config(path)
    with pytest.raises(ConfigError, match="does not parse"):
        config_from_tree({}, [f"train=!!python/object/apply:os.system ['touch {proof}']"])
    assert not proof.exists()


def test_pickled_weights_are_refused(proof: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "gpt2"}')
    (tmp_path / "pytorch_model.bin").write_bytes(pickle.dumps(Payload(proof)))
    with pytest.raises(UserError, match="pickled weights"):
        load_causal_lm(str(tmp_path))
    assert not proof.exists()


@pytest.mark.parametrize("key", ["experiment", "arm"])
@pytest.mark.parametrize("value", ["../other", "/etc", "..", "a/b", "a\\b", ".hidden", "", "a\0b"])
def test_a_config_names_folders_and_no_paths(key: str, value: str) -> None:
    with pytest.raises(ConfigError, match=f"`{key}`"):
        config_from_tree({key: value})


@pytest.mark.parametrize("root", ["/etc", "../elsewhere", "a/../../b", "~/x"])
def test_a_file_does_not_say_where_on_the_machine_is_written(tmp_path: Path, root: str) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"run_root": root}))
    with pytest.raises(ConfigError, match=r"config\.yaml:1: `run_root`.*command line"):
        load_config(path)
    base = ["student.source=x", "teacher.source=y", "data.train=synthetic"]
    assert load_config(path, [*base, f"run_root={root}"]).run_root == str(Path(root).expanduser())


@pytest.mark.parametrize(
    ("tree", "key"),
    [
        ({"run_root": "${oc.env:HOME}/x"}, "run_root"),
        ({"run_root": "${data.train}", "data": {"train": "/etc/x"}}, "run_root"),
        ({"train": {"lr": "${nope}"}}, "train.lr"),
        ({"arm": "???"}, "arm"),
        ({"train": {"betas": [0.9, "${seed}"]}}, "train.betas"),
        ({"data": {"test_sets": {"a": "${oc.env:HOME}"}}}, "data.test_sets"),
    ],
)
def test_a_value_is_a_value_and_no_reference(tree: dict[str, Any], key: str, tmp_path: Path) -> None:
    """Whoever writes one is used to tools that would put something else in its place."""
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(tree))
    with pytest.raises(ConfigError, match=f"`{key}.*not a reference"):
        load_config(path)


def test_remote_code_is_off_unless_the_config_says_so() -> None:
    config = ExperimentConfig()
    assert not config.teacher.trust_remote_code and not config.student.trust_remote_code


def test_a_manifest_cannot_point_outside_its_folder(tmp_path: Path) -> None:
    (tmp_path / "secret").write_text("")
    folder = tmp_path / "round=0"
    folder.mkdir()
    shards = [{"file": "../secret", "sha256": "0"}]
    manifest = json.dumps({"key": "k", "shards": shards, "statistics": {}, "costs": {}}).encode()
    write_checked(folder / "manifest.json", lambda file: file.write(manifest))
    with pytest.raises(DataError, match="no file of this folder"):
        read_round(folder, "k")


ATTACK = "<script>alert(1)</script><img src=x onerror=alert(1)> [x](javascript:alert(1)) | `a` |"


class _Words:
    """A tokenizer that knows one text."""

    eos_token_id = 1

    def decode(self, ids: Any, **kwargs: Any) -> str:
        return ATTACK

    def convert_ids_to_tokens(self, ids: Any) -> Any:
        return ATTACK if isinstance(ids, int) else [ATTACK for _ in ids]


def test_text_of_models_is_escaped_in_tensorboard_and_html() -> None:
    text = markdown_revision(RevisedSequence(0, (2,), (3,), (3,), (), "not_searched", 0, 0), _Words())  # type: ignore[arg-type]
    assert "<script" not in text and "<img" not in text
    tables = [Table(ATTACK, [ATTACK], [[ATTACK, ATTACK]], 1)]
    corrections = [(ATTACK, ATTACK, ATTACK)]
    said = Content(ATTACK, ATTACK, [ATTACK], {}, tables, [ATTACK], corrections, [ATTACK], ATTACK, tables)
    html = filled("report.html.j2", said)
    assert "<script>alert" not in html and "<img src=x" not in html and html.count("&lt;script&gt;alert") > 15
