"""`mgsr plan`: what a run costs, and under which strategy it fits, before a device is rented."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.evaluation.flops import shape_of
from mgsr.models.from_config import quiet_transformers, teacher_dtype
from mgsr.models.output_layer import position_limit
from mgsr.planning.communication import Traffic, communication
from mgsr.planning.host_memory import Host, Saved, host_memory, saved
from mgsr.planning.model_size import fake_models, model_size, parts_of
from mgsr.planning.peak_memory import MIXED, Activations, extrapolated_activations
from mgsr.planning.plan_cost import (
    Hardware,
    Phase,
    Speaker,
    answer_phases,
    answered_times,
    main_phases,
    sft_phase,
    worthwhile_tokens,
)
from mgsr.planning.plan_memory import DEVICE, RESERVED, Account, Model, Trained, account, possible
from mgsr.planning.shapes import ShapeFinder
from mgsr.planning.workload import Stage, Text, find_text, main_job, sft_stage
from mgsr.runtime.devices import computing_dtype
from mgsr.runtime.errors import ConfigError


@dataclass(frozen=True)
class Option:
    """One strategy with one placement: memory of a device and of a node, traffic, the run's seconds with all."""

    account: Account
    host: Host
    traffic: Traffic
    communication_seconds: float
    seconds: float


@dataclass
class Plan:
    """All that `mgsr plan` says.

    Attributes:
        models: by name: source, where its shape comes from, parameters, bytes.
        stages: of training, in their order; phases: of all of them. saved: their checkpoints.
        greedy, sampled: seconds of the test sets, answered once with the best token and once per seed.
        options: in the order of preference at equal time.
        recommended: the fastest option that fits, or None.
        worthwhile: tokens of one device in an optimiser step, see `worthwhile_tokens`.
    """

    config: ExperimentConfig
    path: str
    devices: int
    nodes: int
    available: int
    hardware: Hardware
    text: Text
    models: dict[str, dict[str, Any]]
    stages: list[Stage]
    phases: list[Phase]
    saved: list[Saved]
    greedy: float
    sampled: float
    options: list[Option]
    worthwhile: float

    @property
    def world_size(self) -> int:
        """Devices of all nodes."""
        return self.devices * self.nodes

    @property
    def main(self) -> Stage:
        """The main job: the last stage."""
        return self.stages[-1]

    @property
    def recommended(self) -> Option | None:
        """The fastest option that fits."""
        fitting = [option for option in self.options if option.account.fits]
        return min(fitting, key=lambda option: option.seconds) if fitting else None

    @property
    def configured(self) -> Option | None:
        """What the configuration itself asks for, if it exists on so many devices."""
        several = self.world_size > 1
        strategy = self.config.trainer.strategy if several else "auto"
        strategy = "ddp" if several and strategy == "auto" else strategy
        wanted = strategy, self.config.teacher.placement
        return next((o for o in self.options if (o.account.strategy, o.account.placement) == wanted), None)

    def to_dict(self) -> dict[str, Any]:
        """Machine-readable; bytes, seconds and FLOPs."""
        best = self.recommended
        tokens = sum(stage.tokens(self.text) for stage in self.stages)
        main = self.main
        return {
            "config": self.path,
            "devices": self.devices,
            "nodes": self.nodes,
            "available": self.available,
            "reserved": RESERVED,
            "hardware": asdict(self.hardware),
            "models": self.models,
            "text": asdict(self.text),
            "stages": {stage.name: asdict(stage) | {"tokens": stage.tokens(self.text)} for stage in self.stages},
            "tokens": {"per_epoch": self.tokens_per_epoch, "main_job": main.tokens(self.text), "total": tokens},
            "tokens_per_step": {"each_device": self.tokens_per_step, "worthwhile": self.worthwhile},
            "flops": {p.name: {"trunk": p.work.trunk, "head": p.work.head} for p in self.phases},
            "seconds": {p.name: {"seconds": p.seconds, "bound": p.bound} for p in self.phases},
            "tests": {"rows": self.text.tests, "greedy": self.greedy, "sampled": self.sampled},
            "checkpoints": {saved.stage: asdict(saved) for saved in self.saved},
            "strategies": [
                option.account.to_dict()
                | {
                    "host": asdict(option.host) | {"own": option.host.own},
                    "communication": asdict(option.traffic) | {"seconds": option.communication_seconds},
                    "seconds": option.seconds,
                }
                for option in self.options
            ],
            "recommended": _named(best),
            "configured": _named(self.configured),
            "fits": best is not None,
        }

    @property
    def tokens_per_step(self) -> float:
        """Tokens of one device in an optimiser step of the main job."""
        return self.main.tokens(self.text) / self.main.length.total_steps / self.world_size

    @property
    def tokens_per_epoch(self) -> float:
        """Tokens that the main job trains on in one epoch."""
        length = self.main.length
        return self.main.tokens(self.text) * length.steps_per_epoch / length.total_steps


def _named(option: Option | None) -> dict[str, Any] | None:
    if option is None:
        return None
    row = option.account
    return {"strategy": row.strategy, "placement": row.placement, "seconds": option.seconds, "fits": row.fits}


def plan(
    path: str | Path | None,
    overrides: Sequence[str] = (),
    *,
    devices: int = 1,
    nodes: int = 1,
    available: int,
    hardware: Hardware | None = None,
    rows: int | None = None,
) -> Plan:
    """Steps, tokens, FLOPs, time, memory and communication of a run; no weight is loaded, no network is needed.

    Args:
        path: configuration file, None for the defaults; overrides: `key=value` words on top.
        devices: per node, in place of the configuration's.
        available: bytes of one device.
        rows: training rows, where they are not on this machine.

    Raises:
        UserError: a configuration, rows or a shape that cannot be used.
    """
    config = load_config(path, overrides)
    hardware = hardware or Hardware()
    world = devices * nodes
    quiet_transformers()
    text, tokenizer = find_text(config, rows)
    finder = ShapeFinder()
    mode, teacher, student = fake_models(config, 0 if tokenizer is None else len(tokenizer), find_shape=finder)
    people = {"teacher": teacher, "student": student} if teacher is not None else {"student": student}
    _check_positions(config, people, text)
    sized = {name: _model(model) for name, model in people.items()}
    cuda = torch.device(DEVICE)
    types = {"student": computing_dtype(config.trainer.precision, cuda), "teacher": teacher_dtype(config, cuda)}
    computing = {name: sized[name].in_type(types[name]) for name in people}
    speakers = {name: _speaker(config, name, model, computing[name]) for name, model in people.items()}
    stages, phases, trained = [], [], []

    @cache
    def kept(name: str, checkpointing: bool) -> Activations:
        mixed, layers = MIXED.get(config.trainer.precision), sized[name].size.layers
        return extrapolated_activations(
            mode, people[name], layers, text.longest, checkpointing=checkpointing, mixed=mixed
        )

    def memory_of(stage: Stage, name: str, checkpointing: bool) -> Trained:
        rows, micro_batches = stage.forward_rows, stage.length.micro_batches
        return Trained(stage.name, sized[name], kept(name, checkpointing), rows, text.longest, micro_batches)

    for name in people:
        sft = getattr(config, name).sft
        if sft.enabled:
            count = text.teacher_rows if name == "teacher" else text.rows
            stage = sft_stage(f"{name} SFT", sft, count, world)
            stages.append(stage)
            phases.append(sft_phase(config, stage, speakers[name], text, hardware, world))
            trained.append(memory_of(stage, name, sft.gradient_checkpointing))
    main = main_job(config, text.rows, world)
    stages.append(main)
    taught = speakers.get("teacher")
    phases += main_phases(config, main, speakers["student"], taught, text, hardware, world)
    working = memory_of(main, "student", config.train.gradient_checkpointing)
    answered = [
        answer_phases(config, speakers["student"], taught, text, hardware, world, seeds=seeds)
        for seeds in (1, answered_times(config))
    ]
    phases += answered[1]
    greedy, sampled = (sum(phase.seconds for phase in way) for way in answered)
    checkpoints = [saved(config, stage, sized, hardware) for stage in stages]
    busy = sum(phase.seconds for phase in phases) + sum(one.held for one in checkpoints)
    options = []
    for strategy, placement in possible(config, devices, nodes, teacher is not None):
        row = account(
            config, working, computing.get("teacher"), trained,
            world_size=world, strategy=strategy, placement=placement, available=available,
        )  # fmt: skip
        host = host_memory(config, sized, checkpoints, text, main, devices=devices, account=row)
        # FSDP2 gathers what is computed in
        parts = {name: (computing if strategy == "fsdp2" else sized)[name].parts for name in people}
        taught_by = computing.get("teacher")
        sent, seconds = communication(config, text, stages, parts, taught_by, strategy, placement, hardware, world)
        options.append(Option(row, host, sent, seconds, busy + seconds))
    described = {
        name: _described(config, name, sized[name], speakers[name].shape.adapters, finder) for name in people
    }
    return Plan(
        config,
        str(path or "defaults"),
        devices,
        nodes,
        available,
        hardware,
        text,
        described,
        stages,
        phases,
        checkpoints,
        greedy,
        sampled,
        options,
        worthwhile_tokens(config, speakers["student"], sized["student"].size.parameters, hardware),
    )


def _check_positions(config: ExperimentConfig, people: dict[str, Any], text: Text) -> None:
    for name, model in people.items():
        most = position_limit(model)
        if most is not None and text.longest > most:
            source = getattr(config, name).source
            raise ConfigError(
                f"`data.max_length`: sequences of {text.longest} tokens, and {name} {source} has {most} positions"
                "; lower data.max_length or scrg.max_new_tokens"
            )


def _model(model: Any) -> Model:
    size = model_size(model)
    return Model(size, parts_of(model, size), wide=next(model.parameters()).element_size() >= 4)


def _speaker(config: ExperimentConfig, name: str, model: Any, sized: Model) -> Speaker:
    adapters = 0
    if name == "student" and config.student.lora.r:
        adapters = sum(p.numel() for p in model.parameters() if p.requires_grad)
    shape = shape_of(model, adapters=adapters)
    return Speaker(shape, sized.size.weights, sized.size.kv_per_token, narrow=not sized.wide)


def _described(
    config: ExperimentConfig, name: str, model: Model, adapters: int, finder: ShapeFinder
) -> dict[str, Any]:
    source = getattr(config, name).source
    origin = {"init": "the configuration", "teacher": "the teacher"}.get(source) or finder.origins[source]
    return {
        "source": source,
        "shape_from": origin,
        "parameters": model.size.parameters,
        "adapters": adapters,
        "weights": model.size.weights,
        "layers": model.size.layers,
        "width": model.size.width,
        "classes": model.size.classes,
    }
