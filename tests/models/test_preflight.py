"""What can be known before the first stage is said before it, by `train` and by `doctor` alike."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mgsr import models
from mgsr.cli.main import main
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.chunkers import PIPELINE
from mgsr.data.tokenizer import train_tokenizer
from mgsr.models import from_config, preflight
from mgsr.planning.doctor import examine
from mgsr.runtime.errors import UserError
from mgsr.study.run import run_study
from mgsr.study.study import load_study
from mgsr.training.run_folder import run_folder
from mgsr.training.train import prepare, train

Make = Callable[..., ExperimentConfig]


def model_folder(folder: Path, *, rows: int | None = None, **special: str) -> Path:
    tokenizer = train_tokenizer(["Say the opposite of the word."] * 3, vocab_size=280)
    rows = rows or len(tokenizer)
    for name, token in special.items():
        setattr(tokenizer, name, token)
    shape = {"hidden_size": 8, "num_layers": 1, "num_heads": 2, "max_position_embeddings": 256, "seed": 0}
    model = models.build_causal_lm("llama", vocab_size=rows, eos_token_id=1, **shape)
    return models.save_model_folder(model, tokenizer, folder)


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    model_folder(root / "good")
    model_folder(root / "narrow", rows=100)
    # tokens that the tokenizer adds, behind the last row of the embedding
    model_folder(root / "padded", pad_token="[PAD]")
    model_folder(root / "endless", eos_token="[END]")
    torn = model_folder(root / "torn") / "model.safetensors"
    torn.write_bytes(torn.read_bytes()[:-8])
    return root


# an override, where the doctor says it, what is said
LATE = [
    ("student.architecture.num_heads=3", "student", "not a multiple of num_heads 3"),
    (
        "student.architecture.hidden_size=65536 student.architecture.num_layers=30",
        "student",
        r"takes \d+ GB, and this machine has",
    ),
    ("student.attn_implementation=foo", "student", 'attn_implementation="foo"` is not supported'),
    (
        "student.architecture.num_heads=3",
        "student",
        r"command line \(student\.architecture\.num_heads\): `student.architecture`: llama",
    ),
    ("student.keep_layers=[0,7]", "student", "^command line: `student.keep_layers`: layer 7 cannot be kept"),
    (
        "student.source={folders}/good",
        "tokenizers",
        r"tiny\.yaml:11 \(teacher\.source\), command line \(student\.source\): teacher and student must share",
    ),
    ("student.source={folders}/torn", "student", "model.safetensors` is torn"),
    ("student.source={folders}/god", "student", "did you mean .*/good`"),
    ("student.source=teacher student.keep_layers=[0,7]", "student", "layer 7 cannot be kept"),
    ("student.lora={{r: 2, target_modules: [q_prj]}}", "student", "`q_prj` is no layer"),
    ("teacher.source={folders}/good student.source={folders}/narrow", "lengths", "its embedding has 100 rows"),
    (
        "teacher.source={folders}/endless student.source={folders}/endless",
        "lengths",
        r"teacher: the end token `\[END\]` \(id \d+\) is outside the \d+ ids .* by data\.end_token",
    ),
    ("data.end_token=<eso>", "lengths", "no token of the tokenizer .*did you mean `<eos>`"),
    ("scrg.max_new_tokens=200", "lengths", r"104 positions: lower scrg\.max_new_tokens"),
    ("evaluation.max_new_tokens=200", "lengths", r"104 positions: lower evaluation\.max_new_tokens"),
    ("scrg.backend=vllm", "packages", "needs vLLM"),
    ("student.lora.r=2", "packages", r"pip install 'peft>="),
    ("spans.chunker=spacy", "packages", r"pip install 'spacy>="),
    ("spans={{chunker: random, random_lengths: spacy}}", "packages", r"pip install 'spacy>="),
]


@pytest.fixture
def bare(monkeypatch: pytest.MonkeyPatch) -> None:
    """An installation without extras."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        preflight.importlib.util,  # type: ignore[attr-defined]
        "find_spec",
        lambda name, *more: None if name in ("peft", "vllm") else find(name, *more),
    )
    import spacy

    def load(name: str, **_: Any) -> Any:
        assert name == PIPELINE
        raise OSError("Can't find model")

    monkeypatch.setattr(spacy, "load", load)


@pytest.mark.parametrize(("words", "section", "said"), LATE)
def test_what_would_come_late_comes_first(
    tiny_file: Path,
    tmp_path: Path,
    folders: Path,
    request: pytest.FixtureRequest,
    words: str,
    section: str,
    said: str,
) -> None:
    if section == "packages":
        request.getfixturevalue("bare")
    parts = words.format(folders=folders).replace(" student", "\nstudent").replace(" data.", "\ndata.")
    overrides = [f"run_root={tmp_path}", *parts.replace(" evaluation.", "\nevaluation.").split("\n")]
    config = load_config(tiny_file, overrides)
    for begin in (train, prepare):
        with pytest.raises(UserError, match=said) as caught:
            begin(config)
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir()), "nothing is written"
    report = examine(tiny_file, overrides)
    found = [finding for finding in report.findings if finding.level == "error" and finding.section == section]
    assert [finding for finding in found if str(caught.value).endswith(finding.text)], report.findings
    texts = [finding.text for finding in report.findings if finding.level == "error"]
    assert len(texts) == len(set(texts)), "the same is said once"


WEIGHTS = """
import torch
from mgsr.losses import forward_kl

seen = []


def weighted(teacher_logits, student_logits, *, temperature=1.0):
    seen.append(teacher_logits.shape)
    return (torch.ones(250) * (teacher_logits - student_logits)).sum(-1).square()


def whole(teacher_logits, student_logits, *, temperature=1.0):
    loss = forward_kl(teacher_logits, student_logits)
    return loss if loss.shape == (2,) and teacher_logits.shape[-1] == 1024 else loss.detach()
"""


@pytest.mark.parametrize("key", ["divergence", "written_divergence"])
@pytest.mark.parametrize("student", ["student", "init", "teacher"])
def test_a_divergence_of_ones_own_is_tried_at_the_width_of_the_run(
    tiny_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, student: str, key: str
) -> None:
    (tmp_path / "my_weights.py").write_text(WEIGHTS)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "my_weights", raising=False)
    # fewer rows than the tokenizer has tokens: the width is of models and tokenizers together
    rows = (300, 250) if student == "student" else (250, 250)
    for name, size in zip(("teacher", "student"), rows, strict=True):
        model_folder(tmp_path / name, rows=size)

    def loaded(*_: Any, **__: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(from_config, "load_causal_lm", loaded)
    own = str(tmp_path / student) if student == "student" else student
    words = [f"teacher.source={tmp_path}/teacher", f"student.source={own}", f"run_root={tmp_path}/runs"]
    words.append("data.train=synthetic")
    if key == "written_divergence":
        words.append("objective.divergence=forward_kl")
    said = rf"`objective\.{key}`: my_weights:whole: has no gradient to the student's logits"
    study = tmp_path / "study.yaml"
    # refused before the arms around it are looked at for a run
    arms = zip(("one", "two", "three"), ("weighted", "whole", "weighted"), strict=True)
    lines = [f"  {arm}: {{objective.{key}: my_weights:{name}}}" for arm, name in arms]
    study.write_text("\n".join([f"base: {tiny_file}", "baseline: one", "arms:", *lines]))
    wrong = load_config(tiny_file, [*words, f"objective.{key}=my_weights:whole"])
    for begin in (lambda: train(wrong), lambda: prepare(wrong), lambda: run_study(load_study(study), (0,), words)):
        with pytest.raises(UserError, match=said):
            begin()
    found = examine(tiny_file, [*words, f"objective.{key}=my_weights:whole"]).findings
    errors = [finding for finding in found if finding.level == "error" and finding.section == "objective"]
    assert len(errors) == 1 and "my_weights:whole" in errors[0].text, found
    right = load_config(tiny_file, [*words, f"objective.{key}=my_weights:weighted"])
    preflight.check_objective_of(right)
    assert set(sys.modules["my_weights"].seen) == {(2, 250)}
    found = examine(tiny_file, [*words, f"objective.{key}=my_weights:weighted"]).findings
    assert not [finding for finding in found if finding.level == "error" and finding.section == "objective"]


def test_a_sound_run_passes_and_reads_no_weight(make_config: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    config = make_config()
    for _, check in preflight.checks(config, {}, {}):
        check()
    monkeypatch.setattr(preflight, "check_run", lambda *_: None)
    assert not run_folder(config).exists()


def test_padding_and_added_tokens_that_the_embedding_lacks_do_no_harm(
    tiny_file: Path, tmp_path: Path, folders: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("teacher", "student"):
        tokenizer = models.load_tokenizer(folders / "padded")
        tokenizer.add_tokens(["<extra>"])
        models.save_model_folder(models.load_causal_lm(folders / "padded"), tokenizer, tmp_path / name)
    model = models.load_causal_lm(tmp_path / "teacher")
    assert tokenizer.pad_token_id >= model.get_input_embeddings().num_embeddings
    overrides = [
        f"run_root={tmp_path}/runs",
        *(f"{name}.source={tmp_path}/{name}" for name in ("teacher", "student")),
    ]
    report = examine(tiny_file, overrides)
    assert [finding for finding in report.findings if finding.level == "error"] == []
    config = load_config(tiny_file, [*overrides, "train.epochs=1"])
    assert train(config)["steps"] == 4
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"instruction": "Say the word.", "output": "word"}\n')
    assert main(["evaluate", str(tmp_path / "teacher"), "--data", str(rows), "--max-new-tokens", "4"]) == 0
    # a row that needs such a token is named, with its line
    rows.write_text(
        '{"instruction": "Say it.", "output": "it"}\n{"instruction": "Say <extra>.", "output": "it"}\n'
    )
    assert main(["evaluate", str(tmp_path / "teacher"), "--data", str(rows), "--max-new-tokens", "4"]) == 2
    needed = "rows.jsonl:2 has the token `<extra>` of id"
    assert needed in capsys.readouterr().err
    own = [f"data.{split}={tmp_path}/{split}.jsonl" for split in ("train", "dev", "test")]
    for split in ("train", "dev", "test"):
        (tmp_path / f"{split}.jsonl").write_text(rows.read_text().replace("Say <extra>.", "Say it again."))
    (tmp_path / "train.jsonl").write_text(rows.read_text())
    with pytest.raises(UserError, match=r"train\.jsonl:2 has the token `<extra>` of id"):
        train(load_config(tiny_file, [*overrides, *own, "arm=rows", "train.batch_size=2"]))
    found = [
        finding.text for finding in examine(tiny_file, [*overrides, *own]).findings if finding.level == "error"
    ]
    assert any("train.jsonl:2 has the token `<extra>`" in text for text in found)
