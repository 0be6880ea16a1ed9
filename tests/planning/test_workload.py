"""Steps, sequences, tokens and traffic, by hand."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig, TrainConfig
from mgsr.data.splits import encode, read_split
from mgsr.evaluation.flops import Flops, Shape, decoding
from mgsr.planning.communication import Traffic, all_reduce, gather, student_step, traffic
from mgsr.planning.model_size import Parts
from mgsr.planning.plan import plan
from mgsr.planning.plan_cost import Hardware, Speaker, main_phases, worthwhile_tokens
from mgsr.planning.workload import Text, find_text, main_job, sft_stage
from mgsr.runtime.errors import UserError

TEXT = Text(100, 100, prompt=10, response=20, written=30, longest=60, rows_from="", lengths_from="")
# 1,000 bytes, 800 of them in layers
STUDENT = Parts(weights=1000, trained=1000, layers=800, layer=100, layer_trained=100, root=200, root_trained=200)
TEACHER = Parts(weights=5000, trained=0, layers=4000, layer=500, layer_trained=0, root=1000, root_trained=0)


def configured(**train: int) -> ExperimentConfig:
    config = ExperimentConfig()
    config.train = TrainConfig(batch_size=32, micro_batch_size=8, **train)
    return config


def test_steps_and_tokens_by_hand() -> None:
    """100 rows, 32 a step, 2 devices of at most 8: 2 forwards each; 3 whole steps and one of 4 rows an epoch."""
    stage = main_job(configured(epochs=3), 100, 2)
    assert (stage.length.steps_per_epoch, stage.length.total_steps, stage.length.micro_batches) == (4, 12, 2)
    assert stage.forward_rows == 8
    # half of 300 sequences is written text, each written once
    assert (stage.truth, stage.text, stage.written, stage.rounds) == (150, 150, 150, 3)
    assert stage.tokens(TEXT) == 150 * 30 + 150 * 40
    # 3 rows are fewer than 2 forwards on 2 devices, and are trained on
    stage = main_job(configured(epochs=3), 99, 2)
    assert stage.length.total_steps == 12 and stage.truth + stage.text == 297
    # as many steps as asked for
    stage = main_job(configured(max_steps=6), 100, 2)
    assert stage.truth + stage.text == 150 and stage.length.epochs == 2 and stage.rounds == 2


def test_rounds_and_shares() -> None:
    config = configured(epochs=4)
    config.scrg.every_n_epochs = 2
    # a prompt is drawn in one of two epochs with probability 3/4
    assert main_job(config, 128, 1).written == 128 * 0.75 * 2
    config.mixture.kind = "adaptive"
    assert main_job(config, 128, 1).written == 128 * 2
    config.mixture.kind, config.scrg.every_n_epochs = "linear", 1
    assert main_job(config, 128, 1).written == pytest.approx(0.3 * 512)
    config.scrg.enabled = False
    stage = main_job(config, 128, 1)
    assert (stage.truth, stage.text, stage.written, stage.rounds) == (512, 0, 0, 0)
    assert sft_stage("student SFT", config.train, 128, 1).truth == 512


def test_lengths_are_measured_where_rows_and_tokenizer_are_here(tiny_file: Path) -> None:
    config = load_config(tiny_file)
    text, tokenizer = find_text(config, None)
    assert tokenizer is not None and text.rows == 32 and text.teacher_rows == 48
    examples = encode(read_split(config.data, "train"), tokenizer, config.data, "rows").examples
    prompts = [len(example.prompt_ids) for example in examples]
    answers = [len(example.response_ids) for example in examples]
    assert text.prompt == pytest.approx(sum(prompts) / 32) and text.response == pytest.approx(sum(answers) / 32)
    assert text.longest == max(*map(sum, zip(prompts, answers, strict=True)), max(prompts) + 6)
    assert find_text(config, 7)[0].rows == 7


def test_rows_that_are_left_out_are_in_no_mean_and_no_step(tiny_file: Path, tmp_path: Path) -> None:
    rows = tmp_path / "rows.jsonl"
    short = [{"instruction": f"Say {word}.", "output": word} for word in ("one", "two", "six")]
    rows.write_text("".join(json.dumps(row) + "\n" for row in (*short, {**short[0], "instruction": str(7**400)})))
    other = tmp_path / "other.jsonl"
    other.write_text(json.dumps({"instruction": "Say ten.", "output": "ten"}))
    words = [f"data.train={rows}", f"data.dev={other}", f"data.test={other}", "data.too_long=leave_out"]
    config = load_config(tiny_file, words)
    text, tokenizer = find_text(config, None)
    assert tokenizer is not None and (text.rows, text.teacher_rows) == (3, 3)
    assert text.rows_from == f"read from {rows}, 1 left out"
    examples = encode(read_split(config.data, "train")[:3], tokenizer, config.data, "rows").examples
    assert text.prompt * 3 == pytest.approx(sum(len(example.prompt_ids) for example in examples))
    assert text.response * 3 == pytest.approx(sum(len(example.response_ids) for example in examples))
    # as many rows as were asked for, as long as those here
    assert find_text(config, 7)[0] == replace(text, rows=7, teacher_rows=7, rows_from="as given by --rows")


def test_rows_that_are_not_here() -> None:
    config = load_config("configs/gpt2.yaml")
    text, tokenizer = find_text(config, None)
    assert text.rows == 11_430 and "assumed" in text.rows_from and tokenizer is None
    assert (text.prompt, text.response, text.written, text.longest) == (256, 256, 256, 512)
    config.data.train_limit = 50
    assert find_text(config, None)[0].rows == 50
    config.data.train = "some/set"
    with pytest.raises(UserError, match="give --rows N"):
        find_text(config, None)
    assert find_text(config, 12)[0].rows == 12


def test_rings() -> None:
    assert gather(800, 8) == 700 and all_reduce(800, 8) == 1400
    assert gather(800, 1) == all_reduce(800, 1) == 0


def test_what_a_step_sends() -> None:
    # 2 (N - 1) / N of the gradients, whatever the number of micro-batches
    assert student_step(STUDENT, 8, "ddp", 2) == 1750
    # per micro-batch: the layers twice and the rest once, and the gradients: 7/8 of 1800 and of 1000
    assert student_step(STUDENT, 8, "fsdp2", 1) == 2450 and student_step(STUDENT, 8, "fsdp2", 2) == 4900
    assert student_step(STUDENT, 1, "auto", 4) == 0

    def sent(strategy: str, placement: str) -> Traffic:
        return traffic(
            STUDENT,
            TEACHER,
            devices=8,
            strategy=strategy,
            placement=placement,
            micro_batches=2,
            teacher_forwards=2,
            scoring_batches=3,
            state_bytes=70,
            writes=True,
        )

    assert sent("ddp", "replicated") == Traffic(1750)
    assert sent("fsdp2", "replicated") == Traffic(4900, 875)
    # the teacher's layers once per forward, 7/8 of 4000
    assert sent("fsdp2", "sharded") == Traffic(4900 + 2 * 3500, 875 + 3 * 3500)
    # states in every step; before an epoch the teacher comes and goes, and a whole student goes and comes
    # and in each of the three batches that are scored both change places
    assert sent("ddp", "cpu") == Traffic(1750, 0, 70, 2 * 6000, 3 * 2 * 6000)
    assert sent("fsdp2", "cpu") == Traffic(4900, 875, 70, 2 * 5000, 3 * 2 * 6000)
    # 10 steps, 3 epochs, 2 rounds: 3000 between devices, 500 + 300 + 200 to the host
    assert Traffic(100, 1000, 50, 100, 100).seconds(10, 3, 2, interconnect=30, host=5) == 300


def test_time_by_hand() -> None:
    """One layer of six weights, so that every figure can be written down."""
    shape = Shape(1, layer_weights=6, compared=1, last_product=1, head_weights=10)
    config = configured(epochs=1)
    config.trainer.precision = "bf16-mixed"
    config.scrg.max_new_tokens, config.scrg.batch_size = 30, 5
    stage = main_job(config, 64, 1)
    assert stage.truth == stage.text == 32
    hardware = Hardware(flops=100, flops_float32=10, mfu=0.5, bandwidth=1000, interconnect=1, host=1)
    student = Speaker(shape, weights=24, kv_per_token=8, narrow=False)
    teacher = Speaker(shape, weights=12, kv_per_token=4, narrow=True)
    found = {phase.name: phase for phase in main_phases(config, stage, student, teacher, TEXT, hardware, 2)}
    # 12 per token and 4 T^2 of attention, three times; 20 per response token, three times
    trunk = 3 * 32 * (12 * 30 + 4 * 30**2 + 12 * 40 + 4 * 40**2)
    head = 3 * 32 * 20 * (20 + 30)
    assert found["student forward and backward"].work == Flops(trunk, head)
    assert found["student forward and backward"].seconds == pytest.approx((trunk + head) / 100 / (2 * 0.5))
    config.trainer.precision = "16-mixed"
    mixed = main_phases(config, stage, student, teacher, TEXT, hardware, 2)[0]
    assert mixed.seconds == pytest.approx((trunk / 100 + head / 10) / (2 * 0.5)), "no product takes float16"
    config.trainer.precision = "bf16-mixed"
    assert found["teacher forward"].work == Flops(trunk / 3, head / 3)
    assert found["student prefill"].work == Flops(32 * (12 * 10 + 4 * 100), 32 * 20)
    # 29 tokens are read behind the prompt's 10, at 11 to 39 positions
    assert found["student decode"].work == Flops(32 * (12 * 29 + 4 * sum(range(11, 40))), 32 * 29 * 20)
    assert found["scoring"].work == Flops(32 * (12 * 40 + 4 * 40**2), 2 * 32 * 30 * 20)
    # half of 30 tokens again, behind 25
    assert found["continuation"].work == Flops(32 * (12 * 14 + 4 * sum(range(26, 40))), 32 * 14 * 20)
    # a speaker that computes in float32; bandwidth is no limit
    decode = found["student decode"]
    assert decode.bound == "compute" and decode.seconds == pytest.approx(decode.work.total / 10)
    slow = Hardware(flops=100, flops_float32=10, mfu=0.5, bandwidth=0.01, interconnect=1, host=1)
    phases = {phase.name: phase for phase in main_phases(config, stage, student, teacher, TEXT, slow, 2)}
    # 16 prompts on each device, 5 at once: 3.2 batches of 30 steps; every token reads 25 slots on average
    moved = 16 / 5 * 30 * 24 + 16 * 30 * 25 * 8
    assert phases["student decode"].bound == "memory bandwidth"
    assert phases["student decode"].seconds == pytest.approx(moved / 0.01)


def test_the_step_that_is_worth_its_overhead_by_hand() -> None:
    shape = Shape(1, layer_weights=6, compared=1, last_product=1, head_weights=10)
    student, config = Speaker(shape, weights=64, kv_per_token=8, narrow=True), configured(epochs=1)
    hardware = Hardware(flops=100, flops_float32=10, mfu=0.5, bandwidth=1000, interconnect=1, host=1)
    # 16 weights, 28 bytes each for AdamW; three times 12 + 4 and 20 per token; a tenth is a ninth of the rest
    assert worthwhile_tokens(config, student, 16, hardware) == pytest.approx(9 * 448 / 1000 / (3 * 36 / 5))
    config.trainer.precision = "bf16-mixed"
    assert worthwhile_tokens(config, student, 16, hardware) == pytest.approx(9 * 544 / 1000 / (3 * 36 / 50))
    adapted = Speaker(replace(shape, adapters=2), weights=64, kv_per_token=8, narrow=True)
    few = worthwhile_tokens(config, adapted, 18, hardware)
    assert few < worthwhile_tokens(config, student, 18, hardware), "AdamW goes over what is trained"


def test_what_is_switched_off_costs_nothing() -> None:
    shape = Shape(1, layer_weights=6, compared=1, last_product=1, head_weights=10)
    speaker = Speaker(shape, weights=24, kv_per_token=8, narrow=False)

    def phases(config: ExperimentConfig) -> dict[str, Flops]:
        stage = main_job(config, 64, 1)
        found = main_phases(config, stage, speaker, speaker_of_teacher, TEXT, Hardware(), 1)
        return {phase.name: phase.work for phase in found}

    speaker_of_teacher = Speaker(shape, weights=12, kv_per_token=4, narrow=True)
    config = configured(epochs=10)
    config.scrg.passes = 3
    three = phases(config)
    assert {"continuation 1", "continuation 2", "continuation 3"} <= set(three)
    # 30 tokens: what is left behind the error is 15, then 7.5, then 3.75 of them
    for number, left in enumerate((15, 7.5, 3.75), 1):
        written = main_job(config, 64, 1).written
        assert three[f"continuation {number}"] == decoding(shape, written, 40 - left, left)
    config.scrg.passes = 1
    assert three["scoring"].total == 3 * phases(config)["scoring"].total
    config.scrg.passes = 0
    assert set(phases(config)) == {
        "student forward and backward", "teacher forward", "student prefill", "student decode",
    }  # fmt: skip
    whole = phases(config)["teacher forward"].total
    config.objective.teacher_top_k = 8
    # one pass over 100 rows of ground truth in place of 5 over 64
    assert phases(config)["teacher forward"].total < whole
    config.scrg.text = "teacher"
    assert "teacher decode" in phases(config) and "student decode" not in phases(config)
    config.scrg.text = "mixed"
    assert {"teacher decode", "student decode"} <= set(phases(config))
    config.scrg.enabled, config.objective.w_dac, config.objective.w_span = False, 0.0, 0.0
    assert set(phases(config)) == {"student forward and backward"}


def test_devices_of_the_command_not_of_the_configuration(tiny_file: Path) -> None:
    one = plan(tiny_file, available=10**9)
    four = plan(tiny_file, devices=2, nodes=2, available=10**9)
    assert one.main.forward_rows == 8 and four.main.forward_rows == 2 and four.world_size == 4
    assert one.phases[2].seconds == pytest.approx(4 * four.phases[2].seconds)
    assert [stage.name for stage in one.stages] == ["teacher SFT", "student SFT", "main job"]
    assert one.stages[0].length.total_steps == 6 and one.stages[1].length.total_steps == 4
    assert one.tokens_per_epoch == pytest.approx(one.main.tokens(one.text) / 3)
