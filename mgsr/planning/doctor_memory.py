"""The doctor's account of memory and disk: what stands on a device in each phase, and the largest batch that fits.

Weights and moments stand all the time; `peak_memory` has what a training step and a written batch add to them.

These are bytes of tensors. A CPU's heap keeps holes between those that come and go, and a process takes about a
third more; whether a batch fits is judged with the holes.
"""

from __future__ import annotations

import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import PreTrainedTokenizerBase

from mgsr.config.schema import ExperimentConfig, LoraConfig, SftConfig
from mgsr.data.sampler import micro_batches_per_step
from mgsr.models.from_config import teacher_dtype
from mgsr.planning.doctor_data import longest_sequence
from mgsr.planning.findings import Report
from mgsr.planning.model_size import ModelSize, clip_parts, fake_models, model_size
from mgsr.planning.peak_memory import (
    MIXED,
    MOST,
    Activations,
    activations,
    generation_added,
    largest,
    training_added,
)
from mgsr.planning.units import readable
from mgsr.planning.workload import main_job
from mgsr.runtime.devices import computing_dtype, working_device
from mgsr.runtime.errors import UserError
from mgsr.training.build import writer_class
from mgsr.training.checkpoint import KEPT

# resident memory of a training step over the bytes of its tensors, glibc; measured, see tests/reliability
HEAP_HOLES = {"cpu": 1.35}


def look_at_memory(
    config: ExperimentConfig, tokenizer: PreTrainedTokenizerBase, report: Report, available: int | None
) -> None:
    """Bytes per device by phase, against what there is; then the disk.

    Args:
        available: bytes of one device; None asks the machine.

    Raises:
        UserError: a model's configuration cannot be had, or the accelerator is not there.
    """
    mode, teacher, student = fake_models(config, len(tokenizer))
    length = longest_sequence(config, report)
    own = model_size(student)
    taught = None if teacher is None else model_size(teacher)
    mixed = MIXED.get(config.trainer.precision)
    kept = activations(
        mode,
        student,
        length,
        checkpointing=config.train.gradient_checkpointing,
        mixed=mixed,
    )
    device = working_device(config.trainer.accelerator)
    trainer = config.trainer
    world = trainer.devices * trainer.num_nodes
    micro_batches = micro_batches_per_step(config.train.batch_size, config.train.micro_batch_size, world)
    rows = -(-config.train.batch_size // (micro_batches * world))
    shards = world if trainer.strategy == "fsdp2" else 1
    clip = sum(clip_parts(config, own.classes).values())
    static = (own.weights + own.optimiser) // shards + clip
    # as it is frozen, and what writes in the student's place
    frozen = None if taught is None else taught.in_type(teacher_dtype(config, device))
    acting = own.in_type(computing_dtype(config.trainer.precision, device))
    static += 0 if frozen is None else _resident(frozen, config.teacher.placement, world)
    if world > 1:
        report.say("ok", "memory.strategy", _between(config, world))
    if world > 1 and shards == 1:
        # gradients stay in the buckets that they are sent in
        static, stepped = static + own.trained, replace(own, trained=0)
    else:
        stepped = replace(own, trained=own.trained // shards)
    account = {
        "student_weights": own.weights,
        "student_parameters": own.parameters,
        "trained": own.trained,
        "teacher_weights": frozen.weights if frozen else 0,
        "teacher_parameters": taught.parameters if taught else 0,
        "optimiser": own.optimiser,
        "clip_network": clip,
        "static": static,
        "length": length,
        "rows": rows,
        "activations": kept.of(rows),
        "training_added": training_added(config, stepped, taught, kept, rows, length, device.type),
        "generation_added": generation_added(config, acting, frozen, config.scrg.batch_size),
    }
    if shards > 1 or acting.weights < own.weights:
        # text is written by a copy of the student, whole and in what it computes in
        account["generation_added"] += acting.weights
    if frozen is not None and config.teacher.placement == "cpu" and config.scrg.enabled:
        # it comes to score, and the student makes room where not every token needs both
        room_made = 0 if writer_class(config).together else own.weights
        account["generation_added"] += max(0, frozen.weights - room_made)
    holes = HEAP_HOLES.get(device.type, 1.0)
    for phase in ("training", "generation"):
        account[phase] = static + int(holes * account[f"{phase}_added"])
    report.figures["memory"] = account
    room = device_memory(device) if available is None else available
    if available is None and device.type == "cpu":
        room //= trainer.devices
    stages = {"teacher": (mode, teacher, taught), "student": (mode, student, own)}
    _look_at_fine_tuning(config, report, stages, len(tokenizer), shards, length, device, room)
    _compare(config, report, stepped, acting, frozen, kept, length, device, room)
    _look_at_disk(config, own, taught, report)


def _look_at_fine_tuning(
    config: ExperimentConfig,
    report: Report,
    stages: dict[str, tuple[FakeTensorMode, Any, ModelSize | None]],
    vocab_size: int,
    shards: int,
    length: int,
    device: torch.device,
    room: int,
) -> None:
    """Bytes of the stages before the main job, against what there is.

    Args:
        stages: teacher and student with the mode of their tensors and their size.
        shards: parts that weights and moments are in.
        length: of the longest sequence; room: bytes of one device.
    """
    account, holes = report.figures["memory"], HEAP_HOLES.get(device.type, 1.0)
    if config.student.lora.r and config.student.sft.enabled:
        # adapters come behind the fine-tuning, which trains all weights
        plain = replace(config, student=replace(config.student, lora=LoraConfig()))
        mode, _, whole = fake_models(plain, vocab_size)
        stages = {**stages, "student": (mode, whole, model_size(whole))}
    for name, (mode, model, size) in stages.items():
        sft: SftConfig = getattr(config, name).sft
        if size is None or not sft.enabled:
            continue
        mixed = MIXED.get(config.trainer.precision)
        kept = activations(mode, model, length, checkpointing=sft.gradient_checkpointing, mixed=mixed)
        rows = min(sft.micro_batch_size, sft.batch_size)
        stepped = replace(size, trained=size.trained // shards)
        added = training_added(config, stepped, None, kept, rows, length, device.type)
        needs = (size.weights + size.optimiser) // shards + int(holes * added)
        account[f"{name}_sft"] = needs
        text = f"{readable(needs)} of {readable(room)} on {device.type}"
        if needs > room:
            report.say("error", f"memory.{name}.sft", f"{text}: lower {name}.sft.micro_batch_size")
        else:
            report.say("ok", f"memory.{name}.sft", text)


def _resident(teacher: ModelSize, placement: str, world: int) -> int:
    """Bytes of the teacher that are there in training: all, its output layer, or its part."""
    if placement == "cpu":
        return teacher.head_bytes
    return teacher.weights // (world if placement == "sharded" else 1)


def _between(config: ExperimentConfig, world: int) -> str:
    strategy = config.trainer.strategy.replace("auto", "ddp")
    more = "; mgsr plan counts layers that are whole for a while too" if strategy == "fsdp2" else ""
    return f"{world} devices, {strategy}, teacher {config.teacher.placement}: of one device{more}"


def _compare(
    config: ExperimentConfig,
    report: Report,
    own: ModelSize,
    acting: ModelSize,
    taught: ModelSize | None,
    kept: Activations,
    length: int,
    device: torch.device,
    room: int,
) -> None:
    account = report.figures["memory"]
    account["available"] = room
    holes = HEAP_HOLES.get(device.type, 1.0)

    def fits(rows: int) -> bool:
        added = training_added(config, own, taught, kept, rows, length, device.type)
        return account["static"] + holes * added <= room

    def writes(rows: int) -> bool:
        return account["static"] + holes * generation_added(config, acting, taught, rows) <= room

    account["largest_micro_batch"] = largest(fits)
    account["largest_written_batch"] = largest(writes) if config.scrg.enabled else None
    for name, key, most in (
        ("training", "train.micro_batch_size", account["largest_micro_batch"]),
        ("generation", "scrg.batch_size", account["largest_written_batch"]),
    ):
        if most is None:
            continue
        needs = account[name]
        text = (
            f"{readable(needs)} of {readable(room)} on {device.type}; "
            f"the largest {key} that fits is {_limit(most)}"
        )
        if needs <= room:
            report.say("ok", f"memory.{name}", text)
        elif most == 0:
            report.say(
                "error",
                f"memory.{name}",
                f"{text}: weights and moments alone take {readable(account['static'])}",
            )
        else:
            report.say("error", f"memory.{name}", f"{text}: set {key}={most}")


def _limit(most: int) -> str:
    return f"{most} or more" if most >= MOST else str(most)


def device_memory(device: torch.device) -> int:
    """Bytes that are free on a GPU, or available to this machine's processes."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    # no Linux: what the system has in all
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _look_at_disk(config: ExperimentConfig, own: ModelSize, taught: ModelSize | None, report: Report) -> None:
    """What a run and its cached models write, against what is free where `run_root` lies."""
    # of a student with adapters, they alone are in a checkpoint
    kept = own.trained if config.student.lora.r else own.weights
    point = kept + own.optimiser
    needs = {"resume_points": (KEPT + 1) * point, "best": 2 * kept, "text": _text_bytes(config, report)}
    if taught is not None and config.teacher.sft.enabled:
        needs["teacher"] = taught.weights + (KEPT + 1) * 3 * taught.weights
    if config.student.sft.enabled:
        needs["student"] = own.weights + (KEPT + 1) * 3 * own.weights
    root = Path(config.run_root).absolute()
    while not root.exists():
        root = root.parent
    if not root.is_dir() or not os.access(root, os.W_OK):
        report.say("error", "disk", f"run_root: {root} is no folder that this user may write to: choose another")
        return
    free, total = shutil.disk_usage(root).free, sum(needs.values())
    report.figures["disk"] = {**needs, "needed": total, "free": free}
    text = f"{readable(total)} for checkpoints, cached models and text; {readable(free)} free at {root}"
    if total <= free:
        report.say("ok", "disk", text)
    else:
        report.say("error", "disk", f"{text}: choose another run_root or free some space")


def _text_bytes(config: ExperimentConfig, report: Report) -> int:
    """About what all rounds of text take on the disk: ids and text of prompts and answers, as JSON."""
    train = report.figures.get("lengths.train")
    rows = report.figures.get("data.train", {}).get("rows", 0)
    if not config.scrg.enabled or train is None:
        return 0
    try:
        job = main_job(config, rows, config.trainer.devices * config.trainer.num_nodes)
    except UserError:
        # said already
        return 0
    per_row = 7 * (train["longest_prompt"] + 3 * config.scrg.max_new_tokens) + 900
    total = int(job.written * per_row)
    report.figures["text"] = {"bytes": total, "readable": readable(total)}
    return total
