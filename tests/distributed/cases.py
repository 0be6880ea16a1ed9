"""Runs on one and on two processes, to be compared by test_ranks.py.

`python -m tests.distributed.cases FOLDER` imports everything once and forks the ranks of every case; what they
computed lies in FOLDER/<case>. Arithmetic is in float64 and the optimiser is SGD where numbers are compared: AdamW
would hide a constant factor in the gradients.
"""

from __future__ import annotations

import gc
import json
import os
import socket
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from lightning.fabric.plugins.environments import TorchElasticEnvironment
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.modules.module import register_module_forward_hook
from torch.nn.parallel import DistributedDataParallel
from transformers.pytorch_utils import Conv1D

import mgsr.training.module
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime import faults
from mgsr.runtime.ranks import is_first
from mgsr.training.fsdp import whole
from mgsr.training.launch import joined
from mgsr.training.module import DistillationModule
from mgsr.training.optim import schedule
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reliability.harness import small_config
from tests.training.live import Watch

# of the reliability tests' small configuration: float64, no dropout, 21 steps, uneven dev and test rows; the last
# step of an epoch has one row, so that one rank has none in any forward
OWN = [
    "data.synthetic.train_rows=9",
    "experiment=ranks",
    "teacher.dtype=float64",
    "student.dtype=float64",
    "trainer.precision=64-true",
    "teacher.architecture.num_layers=2",
    "student.architecture.num_layers=2",
    "student.architecture.dropout=0",
    "scrg.passes=2",
    "train.epochs=7",
    "train.micro_batch_size=1",
    "train.lr=0.05",
    "train.grad_clip=0",
    "evaluation.batch_size=2",
    "evaluation.val_every_n_epochs=3",
    "trainer.timeout_minutes=1",
    "trainer.grad_norm_every_n_steps=2",
    "trainer.histogram_every_n_steps=1000",
]
STEPS = 21


@dataclass(frozen=True)
class Case:
    """One run: on how many ranks, with which overrides, and where it is killed."""

    name: str
    ranks: int
    overrides: tuple[str, ...] = ()
    sgd: bool = False
    kill: str = ""
    resumes: str = ""
    watched: bool = False


FSDP2 = ("trainer.strategy=fsdp2", "teacher.placement=sharded")
# three prompts a round, one after another: two ranks call the teacher a different number of times
WRITTEN = ("scrg.text=interleaved", "mixture.student_fraction=0.34", "scrg.batch_size=1", "scrg.shard_size=1")
RAGGED = (*WRITTEN, "train.epochs=3")
# the optimiser that runs have; one rank without a dev row; the first run makes stages of its own for all of them
ADAMW = ("data.dev_limit=1", "train.epochs=3", "train.lr=0.01", "train.grad_clip=1")
DDP, SHARDED = (*ADAMW, "run_root={folder}/ddp_runs"), (*ADAMW, *FSDP2, "run_root={folder}/sharded_runs")
# rank 1 dies behind step 4 of 9, within the second epoch; once more behind step 8
DIES, DIES_AGAIN = "step.end=kill@9#1", "step.end=kill@7#1"
BF16 = ("teacher.dtype=float32", "student.dtype=float32", "trainer.precision=bf16-mixed", "train.epochs=1")
CASES = (
    Case("one", 1, sgd=True),
    Case("ddp", 2, sgd=True),
    Case("fsdp2", 2, FSDP2, sgd=True),
    # each its own stages before the main job, on two ranks too
    Case("fsdp2_stages", 2, (*FSDP2, *RAGGED, "run_root={folder}/fsdp2_runs"), sgd=True),
    Case("one_stages", 1, (*RAGGED, "run_root={folder}/one_runs"), sgd=True),
    Case("offloaded", 2, ("teacher.placement=cpu",), sgd=True),
    Case("one_bf16", 1, BF16, sgd=True),
    Case("ddp_bf16", 2, BF16, sgd=True),
    Case("fsdp2_bf16", 2, (*BF16, *FSDP2), sgd=True),
    Case("adamw", 2, DDP, watched=True),
    Case("killed", 2, DDP, kill=DIES),
    Case("killed", 2, DDP, resumes="same"),
    # from two ranks to a student in two parts, and from there to one process
    Case("crossing", 2, DDP, kill=DIES),
    Case("crossing", 2, (*DDP, *FSDP2), resumes="sharded", kill=DIES_AGAIN),
    Case("crossing", 1, DDP, resumes="fewer"),
    Case("sharded", 2, SHARDED, watched=True),
    Case("sharded_killed", 2, SHARDED, kill=DIES),
    Case("sharded_killed", 2, SHARDED, resumes="same"),
)


def configuration(folder: Path, case: Case) -> ExperimentConfig:
    own = [text.format(folder=folder) for text in case.overrides]
    return small_config(folder, *OWN, f"arm={case.name}", f"trainer.devices={case.ranks}", *own)


def _sgd(student: Any, clip: Any, train_config: Any, *, clip_lr: float, total_steps: int, fused: bool) -> Any:
    parameters = [p for m in (student, clip) if m is not None for p in m.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(parameters, lr=train_config.lr)
    rate = partial(schedule, total_steps=total_steps, warmup_ratio=0.0, min_lr_ratio=0.1)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, rate)


def _record_first_gradients(path: Path) -> None:
    """Keep the gradients of the main job's first step, as the optimiser sees them."""
    clipping = DistillationModule.configure_gradient_clipping

    def record(self: DistillationModule, *args: Any, **kwargs: Any) -> None:
        if self.global_step == 0 and self.teacher is not None:
            gradients = {n: whole(p.grad).clone() for n, p in self.named_parameters() if p.grad is not None}
            if is_first():
                torch.save(gradients, path)
        clipping(self, *args, **kwargs)

    DistillationModule.configure_gradient_clipping = record  # type: ignore[method-assign]


def _record_weights(path: Path) -> Callable[[], None]:
    """Keep the types of the weights that layers compute with; the callable writes them."""
    seen: set[str] = set()

    def look(module: Any, inputs: Any, output: Any) -> None:
        if isinstance(module, (torch.nn.Linear, Conv1D)):
            seen.add(str(module.weight.dtype))

    register_module_forward_hook(look)
    return lambda: path.write_text(json.dumps(sorted(seen)))


def work(folder: Path, case: Case) -> None:
    """One rank of one case."""
    if case.sgd:
        mgsr.training.module.build_optimizer = _sgd  # type: ignore[assignment]
        _record_first_gradients(folder / f"{case.name}.gradients.pt")
    written = _record_weights(folder / f"{case.name}.weights.json")
    faults.arm(case.kill)
    config, watch = configuration(folder, case), Watch()
    if case.watched:
        gc.disable()
        watch.install(setattr)
    with joined(config.trainer):
        train(config, resume=bool(case.resumes))
        if is_first():
            written()
    if case.watched:
        place = folder / f"{case.name}.live-{os.environ['RANK']}.json"
        place.write_text(json.dumps({"seen": watch.seen, "trained": watch.trained}))


def averaging(folder: Path) -> None:
    """What becomes of two ranks' gradients 1 and 3, by `fully_shard` and by DistributedDataParallel alone."""
    place = TorchElasticEnvironment()
    dist.init_process_group("gloo", rank=place.global_rank(), world_size=2)
    found = {}
    for name in ("fully_shard", "ddp"):
        layer = torch.nn.Linear(1, 2, bias=False).double()
        wrapped: Any = layer
        if name == "ddp":
            wrapped = DistributedDataParallel(layer)
        else:
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
        inputs = torch.full((1, 1), 1.0 + 2.0 * dist.get_rank(), dtype=torch.float64)
        wrapped(inputs).sum().backward()
        assert layer.weight.grad is not None
        found[name] = whole(layer.weight.grad).flatten().tolist()
    if dist.get_rank() == 0:
        (folder / "averaging.json").write_text(json.dumps(found))


def run_ranks(ranks: int, task: Callable[[], None], log: Path, seconds: float = 120.0) -> list[int | None]:
    """Fork `ranks` processes as torchrun would start them; their exit codes, None for one that had to be killed.

    A rank that fails takes the others with it after a while, as an agent does.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    children = [_fork(rank, ranks, port, task, log) for rank in range(ranks)]
    codes: dict[int, int | None] = {}
    deadline = time.monotonic() + seconds
    while len(codes) < ranks:
        for rank, child in enumerate(children):
            if rank not in codes:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    codes[rank] = os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            for rank, child in enumerate(children):
                if rank not in codes:
                    os.kill(child, 9)
                    os.waitpid(child, 0)
                    codes[rank] = None
        time.sleep(0.01)
    return [codes[rank] for rank in range(ranks)]


def _fork(rank: int, ranks: int, port: int, task: Callable[[], None], log: Path) -> int:
    child = os.fork()
    if child:
        return child
    code = 1
    try:
        out = log.open("a", buffering=1)
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
        sys.stdout = sys.stderr = out
        torch.set_num_threads(1)
        if ranks > 1:
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": ranks, "LOCAL_WORLD_SIZE": ranks}
            place |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "GROUP_RANK": 0, "ROLE_RANK": rank}
            os.environ.update({name: str(value) for name, value in place.items()}, TORCHELASTIC_RUN_ID="test")
        task()
        code = 0
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(code)


def main(arguments: Sequence[str]) -> None:
    folder = Path(arguments[0])
    chosen = arguments[1:]
    # no fork looks through what was imported, which would copy all of it
    gc.collect()
    gc.freeze()
    notes: list[dict[str, Any]] = []
    if not chosen:
        codes = run_ranks(2, partial(averaging, folder), folder / "averaging.log")
        print(f"averaging: {codes}", flush=True)
    for case in CASES:
        if chosen and case.name not in chosen:
            continue
        started = time.monotonic()
        codes = run_ranks(case.ranks, partial(work, folder, case), folder / f"{case.name}.log")
        note = {"name": case.name, "resumes": case.resumes, "codes": codes, "kill": case.kill}
        notes.append({**note, "folder": str(run_folder(configuration(folder, case)))})
        print(f"{case.name}: {codes}, {time.monotonic() - started:.1f} s", flush=True)
    (folder / "cases.json").write_text(json.dumps(notes))


if __name__ == "__main__":
    main(sys.argv[1:])
