"""The golden run: a tiny job in float64 whose every number and text is committed.

Teacher SFT, student SFT, two rounds of SCRG with corrections, all three terms with a priced clip network, a stop
and a resume, the dev and test sets. Beside it, in less detail: other text, other losses, replay, adapters.
Numbers hold to 1e-9, so that other processors pass; text holds to the letter.

`golden.json` bears the numerics version of the code that wrote it. Whoever changes numbers on purpose raises
`mgsr.NUMERICS_VERSION` and runs `python -m tests.test_golden`, in a commit that says why.
"""

from __future__ import annotations

import json
import math
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from mgsr import NUMERICS_VERSION
from mgsr.config.load import load_config
from mgsr.runtime import faults
from mgsr.runtime.errors import RunInterruptedError
from mgsr.training.checkpoint import BEST, newest_whole, read_checkpoint
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

GOLDEN = Path(__file__).with_name("golden.json")
RELATIVE, ABSOLUTE = 1e-9, 1e-12

CONFIG = """
experiment: golden
arm: mgsr
data:
  train: synthetic
  template: plain
  max_length: 80
  max_prompt_length: 64
  synthetic: {families: [describe, summands], teacher_rows: 32, train_rows: 16, dev_rows: 6, test_rows: 6,
              vocab_size: 280}
teacher:
  source: init
  dtype: float64
  architecture: {family: llama, hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32}
  sft: {enabled: true, max_steps: 40, batch_size: 8, micro_batch_size: 8, lr: 3.0e-2, seed: 0}
student:
  source: init
  dtype: float64
  architecture: {family: gpt2, hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 16, dropout: 0.1}
  sft: {enabled: true, max_steps: 40, batch_size: 8, micro_batch_size: 8, lr: 3.0e-2}
scrg: {max_new_tokens: 16, batch_size: 4, shard_size: 4}
clip: {objective: priced, sharpness: 0.02, lr: 1.0e-3}
train: {epochs: 2, batch_size: 4, micro_batch_size: 2, lr: 1.0e-2}
evaluation: {seeds: [10, 20], batch_size: 4, max_new_tokens: 16}
trainer: {accelerator: cpu, precision: 64-true, threads: 1, checkpoint_every_n_steps: 2, log_every_n_steps: 1,
          grad_norm_every_n_steps: 2, histogram_every_n_steps: 100}
"""
ARMS = {
    "minillm": ("objective.kind=minillm", "objective.w_span=0", "scrg.text=mixed"),
    "interleaved": ("scrg.text=interleaved", "objective.divergence=jensen_shannon", "spans.relation=cosine"),
    "teacher_text": ("scrg.text=teacher", "scrg.cross_entropy=true", "objective.divergence=skewed_reverse_kl"),
    "replay": (
        *("mixture.kind=adaptive", "mixture.student_fraction_start=0.5", "mixture.adaptive_eps=0.0"),
        *("scrg.error_position=threshold", "scrg.kl_threshold=0.1", "scrg.passes=3", "objective.temperature=2.0"),
    ),
    "literal": ("clip.mode=fixed", "clip.form=literal", "clip.ramp=sigmoid", "clip.target=label", "spans.norm=l2"),
    "top_k": ("clip.mode=top_k", "clip.top_k=5", "spans.chunker=random"),
    "adapters": ("student.lora.r=2", "objective.divergence=total_variation", "mixture.kind=linear"),
}
# in the middle of the first epoch of the main job, behind the steps of both fine-tunings
STOP = "step.end=stop@83"


def golden_run(root: Path) -> dict[str, Any]:
    """Everything that the run leaves behind, times and machine aside."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "golden.yaml").write_text(CONFIG)
    config = load_config(root / "golden.yaml", [f"run_root={root / 'runs'}"])
    threads = torch.get_num_threads()
    faults.arm(STOP)
    try:
        with pytest.raises(RunInterruptedError):
            train(config)
        faults.arm("")
        metrics = train(config, resume=True)
    finally:
        faults.arm("")
        torch.set_num_threads(threads)
    folder = run_folder(config)
    last = newest_whole(folder)
    assert last is not None
    cache = sorted(path for path in (root / "runs/cache").iterdir() if (path / "model.safetensors").exists())
    found = {
        "metrics": json.loads(json.dumps(metrics)),
        "curves": _curves(folder),
        "rounds": {str(path.relative_to(folder)): _lines(path) for path in sorted(folder.glob("scrg/*/*.jsonl"))},
        "predictions": _lines(folder / "predictions/test.jsonl"),
        "weights": {
            "last": _weights(read_checkpoint(last)["state_dict"]),
            "best": _weights(read_checkpoint(folder / "checkpoints" / BEST)["state_dict"]),
            **{path.name.split("-")[0]: _weights(load_file(path / "model.safetensors")) for path in cache},
        },
    }
    return _untimed(found)


def golden_arm(root: Path, arm: str) -> dict[str, Any]:
    """The written text of an arm, its last weights, and its score."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "golden.yaml").write_text(CONFIG)
    config = load_config(root / "golden.yaml", [f"run_root={root / 'runs'}", f"arm={arm}", *ARMS[arm]])
    threads = torch.get_num_threads()
    try:
        metrics = train(config)
    finally:
        torch.set_num_threads(threads)
    folder = run_folder(config)
    last = newest_whole(folder)
    assert last is not None
    shards = sorted(folder.glob("scrg/*/shard-*.jsonl"))
    return {
        "text": {str(path.relative_to(folder)): [row["response"] for row in _lines(path)] for path in shards},
        "weights": _weights(read_checkpoint(last)["state_dict"]),
        "rouge_l": metrics["result"]["test"]["rouge_l"],
    }


def _curves(folder: Path) -> dict[str, list[list[float]]]:
    events = EventAccumulator(str(folder), size_guidance={"scalars": 0}).Reload()
    points = {
        name: [[e.step, e.value] for e in events.Scalars(name) if math.isfinite(e.value)]
        for name in events.Tags()["scalars"]
    }
    return {name: points[name] for name in sorted(points)}


def _lines(path: Path) -> list[Any]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n") if line]


def _weights(state: Mapping[str, torch.Tensor]) -> dict[str, list[float]]:
    """Sum and norm of every weight: a hash would tell processors apart that only round differently."""
    numbers = {name: tensor.double() for name, tensor in sorted(state.items()) if tensor.is_floating_point()}
    return {name: [float(tensor.sum()), float(tensor.norm())] for name, tensor in numbers.items()}


def _untimed(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _untimed(v) for k, v in value.items() if "seconds" not in k and not k.endswith("_per_second")}
    return [_untimed(v) for v in value] if isinstance(value, list) else value


def differences(golden: Any, found: Any, where: str = "") -> Iterator[str]:
    """Where two runs differ by more than rounding."""
    if isinstance(golden, dict) and isinstance(found, dict):
        for name in sorted(golden.keys() | found.keys()):
            if name in golden and name in found:
                yield from differences(golden[name], found[name], f"{where}.{name}" if where else name)
            else:
                yield f"{where}.{name}: {'gone' if name in golden else 'new'}"
    elif isinstance(golden, list) and isinstance(found, list) and len(golden) == len(found):
        for i, (a, b) in enumerate(zip(golden, found, strict=True)):
            yield from differences(a, b, f"{where}[{i}]")
    elif isinstance(golden, float) and isinstance(found, (int, float)):
        if not math.isclose(golden, found, rel_tol=RELATIVE, abs_tol=ABSOLUTE):
            yield f"{where}: {golden!r} -> {found!r}"
    elif golden != found:
        yield f"{where}: {golden!r} -> {found!r}"


@pytest.fixture(scope="module")
def golden_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where all share their teacher and student, which the golden run makes."""
    return tmp_path_factory.mktemp("golden")


def test_the_golden_run_gives_the_committed_numbers_and_text(golden_root: Path) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    assert golden["numerics_version"] == NUMERICS_VERSION
    found = list(differences(golden["run"], golden_run(golden_root)))
    assert not found, "\n".join(found[:20])


@pytest.mark.parametrize("arm", ARMS)
def test_a_golden_arm_gives_the_committed_numbers_and_text(golden_root: Path, arm: str) -> None:
    golden = json.loads(GOLDEN.read_text(encoding="utf-8"))
    found = list(differences(golden["arms"][arm], golden_arm(golden_root, arm)))
    assert not found, "\n".join(found[:20])


def test_the_golden_run_is_what_it_says() -> None:
    run = json.loads(GOLDEN.read_text(encoding="utf-8"))["run"]
    assert run["metrics"]["steps"] == 8 and run["metrics"]["scrg"]["rounds"] == 2
    rounds = {name.split("/")[1] for name in run["rounds"]}
    corrected = [r for name, rows in run["rounds"].items() if "shard" in name for r in rows if r["corrections"]]
    assert rounds == {"round=0", "round=1"} and corrected
    assert {"train/loss_sft", "train/loss_dac_kl", "train/loss_span", "dac/price"} <= run["curves"].keys()
    assert all(max(abs(v) for _, v in run["curves"][f"train/loss_{t}"]) > 0 for t in ("sft", "dac_kl", "span"))
    assert {"last", "best", "teacher", "student"} == run["weights"].keys()
    assert all(
        run["metrics"][model]["test"]["sampled"]["rouge_l"] > 0 for model in ("teacher", "sft_start", "result")
    )
    assert any(name.startswith("clip.") for name in run["weights"]["last"])


def test_a_number_or_a_letter_that_moved_is_seen() -> None:
    golden = {"a": [1.0, {"b": "text"}], "n": 3}
    assert not list(differences(golden, {"a": [1.0 + 1e-10, {"b": "text"}], "n": 3}))
    assert list(differences(golden, {"a": [1.0 + 1e-8, {"b": "text"}], "n": 3})) == ["a[0]: 1.0 -> 1.00000001"]
    assert list(differences(golden, {"a": [1.0, {"b": "Text"}], "n": 4})) == [
        "a[1].b: 'text' -> 'Text'",
        "n: 3 -> 4",
    ]
    assert list(differences(golden, {"a": [1.0], "n": 3, "m": 0})) != []


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as scratch:
        arms = {arm: golden_arm(Path(scratch) / "arms", arm) for arm in ARMS}
        run = golden_run(Path(scratch) / "run")
    content = {"numerics_version": NUMERICS_VERSION, "run": run, "arms": arms}
    GOLDEN.write_text(json.dumps(content, indent=1, ensure_ascii=False, sort_keys=True) + "\n", encoding="utf-8")
