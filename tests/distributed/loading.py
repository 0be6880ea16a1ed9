"""A teacher that lies on the disk in bfloat16 and computes in float32, whole on one process and in parts on two.

`python -m tests.distributed.loading FOLDER` leaves what each rank has seen in FOLDER/<ranks>-<rank>.json.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch.profiler import ProfilerActivity, profile

from mgsr import models
from mgsr.config.schema import ExperimentConfig
from mgsr.data.encoding import pad_id
from mgsr.data.splits import encode, read_split
from mgsr.data.tokenizer import train_tokenizer
from mgsr.evaluation.test_set import Predictor, evaluate
from mgsr.models.from_config import load_source
from mgsr.runtime.devices import placed, working_type
from mgsr.runtime.ranks import barrier, rank, several, world_size
from mgsr.training.fsdp import WholeCopy, is_sharded, phase_of, shard_at_loading
from tests.distributed.cases import run_ranks
from tests.reliability.harness import small_config

LAYERS, WIDTH = 8, 128
CPU = torch.device("cpu")


def configuration(folder: Path) -> ExperimentConfig:
    words = [f"teacher.source={folder / 'teacher'}", "teacher.placement=sharded", "trainer.strategy=fsdp2"]
    return small_config(folder, "teacher.sft.enabled=false", "evaluation.batch_size=1", *words)


def make(folder: Path) -> None:
    """The teacher's folder, and what it is in numbers."""
    config = small_config(folder)
    rows = read_split(config.data, "teacher")
    tokenizer = train_tokenizer([row.references[0] for row in rows], vocab_size=300)
    model = models.build_causal_lm(
        "llama", vocab_size=len(tokenizer), hidden_size=WIDTH, num_layers=LAYERS, num_heads=4,
        intermediate_size=4 * WIDTH, max_position_embeddings=256, eos_token_id=0, seed=0, initializer_range=0.09,
    )  # fmt: skip
    models.save_model_folder(model.to(torch.bfloat16), tokenizer, folder / "teacher")


def peak_of(work: Callable[[], Any]) -> tuple[int, Any]:
    """The most bytes that torch held at once meanwhile, mapped files among them."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        result = work()
    events = [event for event in seen.profiler.kineto_results.events() if event.name() == "[memory]"]
    now = most = 0
    for event in sorted(events, key=lambda event: event.start_ns()):
        now += event.nbytes()
        most = max(most, now)
    return most, result


def look(folder: Path) -> None:
    if "WORLD_SIZE" in os.environ:
        dist.init_process_group("gloo")
    config = configuration(folder)
    tokenizer = models.load_tokenizer(folder / "teacher")

    def load() -> Any:
        teacher = load_source(config.teacher, as_stored=several())
        shell = WholeCopy(teacher)
        shard_at_loading(config, teacher)
        return shell, teacher

    peak, (shell, teacher) = peak_of(load)
    rows = read_split(config.data, "test")
    examples = list(encode(rows, tokenizer, config.data, "rows").examples)
    predictor = Predictor(
        tokenizer, examples, config.evaluation, len(tokenizer), pad_id(tokenizer),
        together=partial(phase_of, teacher, CPU),
    )  # fmt: skip
    with placed(CPU, teacher):
        found = evaluate(teacher, predictor)
    copied = shell.fill(teacher, on_host=True)
    seen = {
        "peak": peak,
        "sharded": is_sharded(teacher),
        "type": str(working_type(teacher)),
        "types": sorted({str(weight.dtype) for weight in teacher.parameters()}),
        "fingerprint": models.content_fingerprint(teacher),
        "answers": [record["prediction"] for record in found.predictions],
        "rouge_l": found.summary["rouge_l"],
        "again": models.content_fingerprint(copied) if rank() == 0 else next(copied.parameters()).device.type,
    }
    (folder / f"{world_size()}-{rank()}.json").write_text(json.dumps(seen))
    # whoever leaves early closes connections that the other one reads from
    barrier("seen")


def main(folder: Path) -> None:
    # what other threads are given is not seen
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"
    make(folder)
    for ranks in (1, 2):
        codes = run_ranks(ranks, partial(look, folder), folder / "log", seconds=60)
        assert codes == [0] * ranks, codes


if __name__ == "__main__":
    main(Path(sys.argv[1]))
