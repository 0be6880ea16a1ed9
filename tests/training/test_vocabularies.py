"""Teacher and student with the same ids and embeddings padded to different widths, through whole runs."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from transformers import AutoModelForCausalLM, Gemma3Config, PreTrainedTokenizerBase, PreTrainedTokenizerFast

from mgsr import models
from mgsr.cli.main import main
from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.data.collate import StepCounts, collate
from mgsr.data.splits import read_split
from mgsr.data.tokenizer import train_tokenizer
from mgsr.losses import dac_kl, global_mean, span_correlation
from mgsr.training.build import build_job
from mgsr.training.run_folder import run_folder
from mgsr.training.sft import prepare_student, prepare_teacher, shared_start, shared_vocabulary

Capture = pytest.CaptureFixture[str]

TEACHER_PADDING, STUDENT_PADDING = 64, 8
TEXTS = ["the red cat sat on the mat", "a dog saw the red cat", "on the mat sat a dog"] * 5

CONFIG = """
experiment: widths
arm: {family}
data: {{train: {folder}/train.jsonl, dev: {folder}/dev.jsonl, test: {folder}/dev.jsonl, template: plain,
       max_length: 64, max_prompt_length: 48}}
teacher: {{source: {folder}/{family}-teacher}}
student: {{source: {folder}/{family}-student}}
clip: {{mode: fixed, lower: 0.05, upper: 0.9, sharpness: 0.02}}
spans: {{chunker: all_adjacent}}
scrg: {{max_new_tokens: 6, batch_size: 8, passes: 2}}
mixture: {{student_fraction: 0.75}}
train: {{epochs: 2, batch_size: 4, micro_batch_size: 4, lr: 1.0e-3}}
evaluation: {{seeds: [10], batch_size: 8, max_new_tokens: 6}}
trainer: {{accelerator: cpu, log_every_n_steps: 1, checkpoint_every_n_steps: 100}}
"""


def padded(family: str, width: int, ids: int, hidden: int, seed: int) -> Any:
    """A model whose padding would win nearly every softmax that it took part in."""
    model = models.build_causal_lm(
        family,
        vocab_size=width,
        hidden_size=hidden,
        num_layers=1,
        num_heads=2,
        max_position_embeddings=80,
        eos_token_id=1,
        pad_token_id=0,
        seed=seed,
        initializer_range=0.2,
        tie_word_embeddings=family == "opt",
    )
    generator = torch.Generator().manual_seed(seed)
    head = model.get_output_embeddings().weight
    with torch.no_grad():
        head[ids:] = 8 * torch.randn(width - ids, hidden, generator=generator)
    return model


class Pair(NamedTuple):
    file: Path
    config: ExperimentConfig
    ids: int

    @property
    def folder(self) -> Path:
        return run_folder(self.config)

    def model(self, name: str) -> Any:
        return models.load_causal_lm(getattr(self.config, name).source).double().eval()

    def texts(self, round_: int) -> list[dict[str, Any]]:
        shards = sorted((self.folder / f"scrg/round={round_}").glob("shard-*.jsonl"))
        return [json.loads(line) for shard in shards for line in shard.read_text().splitlines()]


@pytest.fixture(scope="module")
def words() -> PreTrainedTokenizerFast:
    return train_tokenizer(TEXTS, vocab_size=280)


@pytest.fixture(scope="module", params=["opt", "qwen3"])
def pair(
    request: pytest.FixtureRequest, words: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Pair]:
    """Both models as folders, and a run that the command line has made of them."""
    folder, family = tmp_path_factory.mktemp("widths"), request.param
    ids = len(words)
    sizes = {"teacher": (ids + TEACHER_PADDING, 16, 0), "student": (ids + STUDENT_PADDING, 8, 1)}
    for name, (width, hidden, seed) in sizes.items():
        model = padded(family, width, ids, hidden, seed)
        models.save_model_folder(model, words, folder / f"{family}-{name}")
    file = write_config(folder, family)
    assert main(["train", str(file), f"run_root={folder}/runs"]) == 0
    yield Pair(file, load_config(file, [f"run_root={folder}/runs"]), ids)


def write_config(folder: Path, family: str) -> Path:
    rows = [{"instruction": text, "output": text[::-1][:12]} for text in sorted(set(TEXTS))]
    for name, number in (("train", 12), ("dev", 3)):
        lines = [json.dumps(rows[i % 3] | {"input": f"{name} {i}"}) + "\n" for i in range(number)]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    file = folder / "config.yaml"
    file.write_text(CONFIG.format(folder=folder, family=family))
    return file


def test_a_run_ends_with_the_padding_as_it_was(pair: Pair) -> None:
    metrics = json.loads((pair.folder / "metrics.json").read_text())
    assert metrics["steps"] == 6 and metrics["scrg"]["rounds"] == 2
    assert 0 < metrics["scrg"]["disagreement_rate"] <= 1
    assert main(["export", str(pair.folder), str(pair.file.parent / "out")]) == 0
    before, after = (pair.model("student"), models.load_causal_lm(pair.file.parent / "out").double())
    heads = [model.get_output_embeddings().weight for model in (before, after)]
    assert heads[0].shape[0] == pair.ids + STUDENT_PADDING
    assert not torch.allclose(heads[0][: pair.ids], heads[1][: pair.ids], atol=1e-4)
    # no gradient reaches it; weight decay alone does
    decay = torch.nn.functional.cosine_similarity(heads[0][pair.ids :], heads[1][pair.ids :])
    assert decay.min() > 1 - 1e-9


def test_no_text_has_an_id_of_the_padding(pair: Pair) -> None:
    for round_ in (0, 1):
        texts = pair.texts(round_)
        written = {i for text in texts for name in ("rollout_ids", "response_ids") for i in text[name]}
        drawn = {
            c[name] for text in texts for c in text["corrections"] for name in ("student_token", "teacher_token")
        }
        assert len(written) > 10 and len(drawn) > 5
        assert max(written | drawn) < pair.ids
    # while the student itself would write little else
    prompts = torch.tensor([list(text["prompt_ids"][-4:]) for text in pair.texts(0)])
    free = torch.softmax(pair.model("student")(prompts).logits[:, -1], -1)[:, pair.ids :].sum(-1)
    assert free.mean() > 0.5


def test_probabilities_of_corrections_are_over_the_shared_ids(pair: Pair) -> None:
    """Round 0 is written before the first step: both models are those of the folders."""
    teacher, student = pair.model("teacher"), pair.model("student")
    checked = 0
    for text in pair.texts(0):
        for c in text["corrections"][:1]:
            prompt = text["prompt_ids"]
            tokens = torch.tensor([prompt + text["rollout_ids"]])
            with torch.no_grad():
                both = (m(tokens).logits[0, len(prompt) - 1 : -1, : pair.ids] for m in (teacher, student))
                p, q = (torch.log_softmax(logits, -1) for logits in both)
            at = c["position"]
            for name, who in (("teacher", p), ("student", q)):
                for token in ("student_token", "teacher_token"):
                    said = c[f"{name}_prob_{token}"]
                    assert said == pytest.approx(float(who[at, c[token]].exp()), rel=1e-4), (name, token)
            divergence = float((p[at].exp() * (p[at] - q[at])).sum())
            assert c["kl"] == pytest.approx(divergence, rel=1e-4)
            likelihood = p.gather(1, torch.tensor(text["rollout_ids"])[:, None]).mean()
            assert c["teacher_log_likelihood_before"] == pytest.approx(float(likelihood), rel=1e-4)
            checked += 1
    assert checked > 5


def test_the_loss_of_a_batch_is_that_of_logits_cut_to_the_shared_ids(pair: Pair, tmp_path: Path) -> None:
    config = load_config(pair.file, [f"run_root={tmp_path}"])
    rows = {name: read_split(config.data, name) for name in ("train", "dev")}
    teacher = prepare_teacher(config)
    student = prepare_student(config, teacher, rows["train"])
    assert teacher is not None and shared_vocabulary(teacher, student) == pair.ids
    start = shared_start(config, teacher, student)
    job = build_job(config, rows["train"], rows["dev"], start, tmp_path / "run", torch.device("cpu"))
    module = job.module.double()
    teacher.model.double()
    sequences = job.data.train_rows[:4]
    batch = collate(sequences, StepCounts.of(sequences), 0)
    taught, teacher_head = module.placement.teacher_states(batch)
    terms = module.losses(batch, (taught, teacher_head), False)

    given = {"input_ids": batch.input_ids}
    q, p = (model(**given).logits[:, :-1, : pair.ids] for model in (student.model, teacher.model))
    labels, keep = batch.labels[:, 1:], batch.labels[:, 1:] != -100
    nll = -torch.log_softmax(q, -1).gather(2, labels.clamp_min(0)[..., None])[..., 0]
    clipped = dac_kl(p, q, *torch.tensor([0.05, 0.9], dtype=torch.float64), sharpness=0.02)
    pairs = span_correlation(p, q, batch.span_ids[:, 1:], mask=keep)
    dense = [global_mean(nll, keep), global_mean(clipped.loss, keep), global_mean(pairs.loss, pairs.is_pair)]
    for name, want in zip(("sft", "dac_kl", "span"), dense, strict=True):
        assert float(getattr(terms, name)) == pytest.approx(float(want.detach()), rel=1e-9), name
    weights = [w for w in module.student.parameters() if w.requires_grad]
    for mine, other in zip(
        torch.autograd.grad(terms.total, weights), torch.autograd.grad(sum(dense), weights), strict=True
    ):
        torch.testing.assert_close(mine, other, atol=1e-10, rtol=1e-7)


def swapped(tokenizer: PreTrainedTokenizerFast, folder: Path, *ids: int) -> PreTrainedTokenizerBase:
    """The same tokens and as many ids, each two neighbours of `ids` changed over."""
    content = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = content["model"]["vocab"]
    names = {index: token for token, index in vocab.items()}
    for a, b in zip(ids[::2], ids[1::2], strict=True):
        vocab[names[a]], vocab[names[b]] = b, a
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer.json").write_text(json.dumps(content))
    return models.load_tokenizer(folder)


@pytest.mark.parametrize("family", ["opt", "qwen3"])
def test_ids_that_disagree_are_refused_before_a_weight_is_loaded(
    family: str, words: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Capture
) -> None:
    """Sizes say nothing: both have as many tokens, and the models are equally wide."""
    other = swapped(words, tmp_path / "other", 270, 200, 150, 90)
    assert len(other) == len(words) and set(other.get_vocab()) == set(words.get_vocab())
    for name, tokenizer in (("teacher", words), ("student", other)):
        models.save_model_folder(
            padded(family, len(words), len(words), 8, 0), tokenizer, tmp_path / f"{family}-{name}"
        )
    file = write_config(tmp_path, family)

    def loaded(*args: Any, **kwargs: Any) -> Any:
        raise AssertionError("weights were loaded")

    monkeypatch.setattr(models, "load_causal_lm", loaded)
    assert main(["train", str(file), f"run_root={tmp_path}/runs"]) == 2
    error = capsys.readouterr().err
    first = words.convert_ids_to_tokens(90)
    assert f"4 tokens differ: `{first}` is id 90 for the teacher and id 150 for the student" in error
    assert error.startswith("mgsr: error: ") and error.count("\n") == 1
    assert not (tmp_path / "runs").exists()


def test_a_gap_in_the_ids_hides_none_of_those_behind_it(words: PreTrainedTokenizerFast) -> None:
    sparse = PreTrainedTokenizerFast(
        tokenizer_object=words.backend_tokenizer, eos_token="<eos>", pad_token="<pad>"
    )
    vocab = sparse.get_vocab()
    kept = {token: index for token, index in vocab.items() if index != 100}
    sparse.get_vocab = lambda: kept  # type: ignore[method-assign]
    model = padded("opt", len(vocab) + 5, len(vocab), 8, 0)
    assert models.written_vocab_size(sparse, model) == len(vocab)
    assert models.written_vocab_size(words, padded("opt", 40, 40, 8, 0)) == 40


def test_a_model_whose_sizes_stand_in_its_text_config(tmp_path: Path) -> None:
    """Gemma 3, which also sees: its configuration has no vocab_size of its own."""
    words = train_tokenizer(TEXTS, vocab_size=280)
    text = {"vocab_size": len(words), "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1}
    text |= {
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "head_dim": 8,
        "pad_token_id": 0,
        "eos_token_id": 1,
    }
    image = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    config = Gemma3Config(
        text_config={**text, "bos_token_id": None},
        vision_config={**image, "image_size": 16, "patch_size": 8},
        eos_token_id=1,
        image_token_index=2,
        boi_token_index=3,
        eoi_token_index=4,
    )
    for name in ("teacher", "student"):
        AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / f"gemma3-{name}")
        words.save_pretrained(tmp_path / f"gemma3-{name}")
    rows = [json.dumps({"instruction": text, "output": text[::-1][:12]}) for text in sorted(set(TEXTS))]
    for split in ("train", "dev"):
        (tmp_path / f"{split}.jsonl").write_text("\n".join(rows * 2))
    (tmp_path / "gemma3.yaml").write_text(CONFIG.format(family="gemma3", folder=tmp_path))
    sft = ["student.sft.enabled=true", "student.sft.max_steps=2", "train.epochs=1"]
    assert main(["train", str(tmp_path / "gemma3.yaml"), f"run_root={tmp_path / 'runs'}", *sft]) == 0
