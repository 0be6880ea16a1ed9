"""Checkpoints, test sets and a node's own memory: against what a run of tiny models leaves, and by hand."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig
from mgsr.models.building import build_causal_lm
from mgsr.planning.host_memory import TOKEN_BYTES, host_memory, saved
from mgsr.planning.model_size import model_size, parts_of
from mgsr.planning.plan import Plan, plan
from mgsr.planning.plan_cost import Hardware, answered_times
from mgsr.planning.plan_memory import FLOAT, GREEDY, SAMPLED, Model, _resident, answering
from mgsr.planning.plan_table import checkpoint_table, host_table
from mgsr.runtime.devices import on_host
from mgsr.training.checkpoint import BEST, KEPT, read_checkpoint, resume_points
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train

GIB = 2**30


def counted(content: Any) -> int:
    """Bytes of all tensors, shared ones once."""
    storages: dict[int, int] = {}

    def visit(node: Any) -> None:
        if isinstance(node, torch.Tensor):
            storages[node.untyped_storage().data_ptr()] = node.numel() * node.element_size()
        for value in node.values() if isinstance(node, dict) else node if isinstance(node, (list, tuple)) else ():
            visit(value)

    visit(content)
    return sum(storages.values())


@pytest.fixture(scope="module")
def planned(tiny_file: Path) -> Plan:
    return plan(tiny_file, ["run_root=runs"], available=GIB)


@pytest.mark.parametrize("words", [[], ["student.lora.r=2"]], ids=["whole", "adapters"])
def test_a_checkpoint_is_as_large_as_the_plan_says(tiny_file: Path, tmp_path: Path, words: list[str]) -> None:
    stages = [f"{name}.sft.enabled=false" for name in ("teacher", "student")]
    words = [f"run_root={tmp_path}", "train.epochs=1", *stages, *words]
    config = load_config(tiny_file, words)
    found = plan(tiny_file, words, available=GIB).saved[-1]
    train(config)
    folder = run_folder(config)
    newest = resume_points(folder)
    assert len(newest) <= found.kept == KEPT
    resume, best = read_checkpoint(newest[0]), read_checkpoint(folder / "checkpoints" / BEST)
    tensors = {name: resume[name] for name in ("state_dict", "optimizer_states")}
    # to the byte, but for rotary frequencies, which are in no file; the copy that is written is as large
    rotary = 0 if config.student.lora.r else 16
    assert counted(tensors) == counted(on_host(tensors)) == found.size - rotary
    assert counted(best["state_dict"]) == found.best - rotary
    assert found.disk == 3 * found.size + 2 * found.best


def test_time_of_checkpoints_by_hand(tiny_file: Path) -> None:
    looks = "evaluation.val_every_n_epochs=2"
    words = ["run_root=runs", "train.epochs=3", "trainer.checkpoint_every_n_steps=2", looks]
    found = plan(tiny_file, words, available=GIB)
    config, stage = found.config, found.main
    sized = {name: real(config, name) for name in ("teacher", "student")}
    rates = Hardware(host=100.0, disk=10.0)
    one = saved(config, stage, sized, rates)
    # every second step, before a look at the dev set (after the second epoch and the last), at the end of an epoch
    assert one.saves == stage.length.total_steps // 2 + 2 + 3
    assert (one.copy, one.write) == (one.size / 100, one.size / 10)
    assert one.held == pytest.approx(one.saves * one.copy + stage.rounds * one.write + 2 * one.best / 100)
    # a stage that writes no text waits for its last one alone, and looks at no dev set
    sft = saved(config, found.stages[0], sized, rates)
    length = found.stages[0].length
    assert sft.best == 0 and sft.saves == length.total_steps // 2 + length.epochs
    assert sft.held == pytest.approx(sft.saves * sft.copy + sft.write)
    assert sft.size == sized["teacher"].size.weights + sized["teacher"].size.optimiser


def real(config: Any, name: str) -> Model:
    shape = getattr(config, name).architecture
    model = build_causal_lm(
        "llama", vocab_size=300, hidden_size=shape.hidden_size, num_layers=shape.num_layers,
        num_heads=shape.num_heads, max_position_embeddings=64, eos_token_id=0, seed=0,
    )  # fmt: skip
    size = model_size(model)
    return Model(size, parts_of(model, size), wide=True)


def test_a_node_by_hand(planned: Plan) -> None:
    config = ExperimentConfig()
    config.teacher.source = config.student.source = "somewhere"
    sized = {name: real(planned.config, name) for name in ("teacher", "student")}
    main, text = planned.main, replace(planned.text, rows=100, prompt=10.0, response=20.0, written=30.0)
    stage = replace(main, written=50.0, rounds=2)
    point = [saved(planned.config, main, sized, Hardware())]
    row = planned.options[0].account
    student, teacher = (sized[name].parts.weights for name in ("student", "teacher"))

    def node(strategy: str, placement: str) -> Any:
        return host_memory(
            config, sized, point, text, stage, devices=4,
            account=replace(row, strategy=strategy, placement=placement),
        )  # fmt: skip

    ddp = node("ddp", "replicated")
    # what is read lies in mapped files, once
    assert (ddp.models, ddp.mapped) == (0, student + teacher)
    assert ddp.checkpoints == point[0].size and node("fsdp2", "sharded").checkpoints == 2 * point[0].size
    # of 100 rows prompt and answer; of the round's 25 the prompt, as written and as corrected; on 4 ranks
    assert ddp.text == 4 * TOKEN_BYTES * (100 * 30 + 25 * 70)
    assert ddp.own == ddp.checkpoints + ddp.text
    # the student makes room for the teacher on each of four devices
    assert node("ddp", "cpu").models == 4 * student
    # what was made here, or is cut, each rank has in memory of its own
    config.student.keep_layers = [0]
    assert node("ddp", "replicated").models == 4 * student and node("ddp", "replicated").mapped == teacher
    config.teacher.source = "init"
    assert node("ddp", "cpu").models == 4 * (student + teacher)
    config.teacher.sft.enabled = True
    assert node("ddp", "cpu").mapped == teacher
    config.objective.teacher_top_k = 5
    assert node("ddp", "cpu").mapped == teacher + 100 * 20 * (8 * 5 + 4)


def test_test_sets_in_memory_by_hand(planned: Plan) -> None:
    config = ExperimentConfig()
    config.evaluation.batch_size, config.evaluation.max_new_tokens, config.data.max_prompt_length = 3, 6, 4
    student, teacher = real(planned.config, "student"), real(planned.config, "teacher")
    tables = 3 * FLOAT * 300
    states = FLOAT * 3 * 10 * (student.size.width + teacher.size.width)
    cache = max(3 * 10 * model.size.kv_per_token for model in (student, teacher))
    both = student.parts.weights + teacher.parts.weights + states + cache + SAMPLED * tables
    assert answering(config, student, teacher, 1) == both
    parts = _resident(teacher, "sharded", 4)
    assert both - answering(config, student, teacher, 4) == teacher.parts.weights - parts
    alone = [answering(replace_temperature(config, t), student, None, 1) for t in (1.0, 0.0)]
    assert alone[0] - alone[1] == (SAMPLED - GREEDY) * tables
    assert alone[1] == student.parts.weights + 3 * 10 * student.size.kv_per_token + tables


def replace_temperature(config: Any, temperature: float) -> Any:
    return replace(config, evaluation=replace(config.evaluation, temperature=temperature))


def test_test_sets_are_counted_greedily_and_sampled(tiny_file: Path, planned: Plan) -> None:
    seeds = planned.config.evaluation.seeds
    assert planned.text.tests == planned.config.data.synthetic.test_rows and planned.text.tests_from == "read"
    names = ["test sets, student twice", "test sets, teacher", "exposure bias"]
    phases = {phase.name: phase for phase in planned.phases if phase.name in names}
    assert list(phases) == names and sum(p.seconds for p in phases.values()) == pytest.approx(planned.sampled)
    # exposure bias is of one seed either way
    exposed = phases["exposure bias"].seconds
    few = plan(tiny_file, ["run_root=runs", "evaluation.exposure_rows=4"], available=GIB)
    part = next(p.seconds for p in few.phases if p.name == "exposure bias")
    assert part == pytest.approx(exposed * 4 / planned.text.tests)
    # greedily once, and sampled once per seed
    times = 1 + len(seeds)
    assert planned.sampled - exposed == pytest.approx(times * (planned.greedy - exposed)) and len(seeds) > 1
    greedy = plan(tiny_file, ["run_root=runs", "evaluation.temperature=0"], available=GIB)
    assert (answered_times(planned.config), answered_times(greedy.config)) == (times, 1)
    assert sum(p.seconds for p in greedy.phases if p.name in names) == pytest.approx(greedy.greedy)
    assert greedy.options[0].seconds < planned.options[0].seconds


def test_a_sharded_teacher_sends_its_layers_at_every_token_of_the_test_sets() -> None:
    few, many = (
        plan("configs/llama2.yaml", ["evaluation.seeds=" + seeds], devices=8, available=80 * GIB)
        for seeds in ("[1]", "[1,2,3]")
    )
    added = {
        (o.account.strategy, o.account.placement): p.communication_seconds - o.communication_seconds
        for o, p in zip(few.options, many.options, strict=True)
    }
    assert added["fsdp2", "replicated"] == added["ddp", "replicated"] == 0 < added["fsdp2", "sharded"]


def test_the_tables(planned: Plan) -> None:
    assert host_table(planned).row_count == 5 and checkpoint_table(planned).row_count == len(planned.stages) == 3
