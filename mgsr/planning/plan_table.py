"""A plan in the terminal: what is assumed, work and time, memory by strategy, traffic, the verdict."""

from __future__ import annotations

from rich.table import Table

from mgsr.planning.plan import Option, Plan
from mgsr.planning.plan_cost import GIGA, TERA
from mgsr.planning.plan_memory import RESERVED, usable
from mgsr.planning.units import readable
from mgsr.runtime.wording import duration, plural


def heading(plan: Plan) -> list[str]:
    """Models, rows, lengths and hardware, each with where it comes from."""
    out = []
    for name, model in plan.models.items():
        adapters = f" with {model['adapters']:,} of adapters" if model["adapters"] else ""
        origin = {"table": "the table of known shapes", "hub cache": "the hub cache"}.get(
            model["shape_from"], f"the {model['shape_from']}".replace("the the", "the")
        )
        out.append(
            f"{name:<9} {model['source']}, {model['parameters']:,} parameters{adapters}, shape from {origin}"
        )
    text, hardware = plan.text, plan.hardware
    out.append(f"rows      {text.rows:,}, {text.rows_from}")
    out.append(
        f"lengths   prompt {text.prompt:.0f}, answer {text.response:.0f}, written {text.written:.0f} tokens; "
        f"{text.lengths_from}"
    )
    out.append(f"test rows {text.tests:,}, {text.tests_from}")
    out.append(
        f"devices   {plan.world_size} x {readable(plan.available)}; "
        f"{hardware.flops / TERA:.0f} TFLOPS in 16 bits, {hardware.flops_float32 / TERA:.1f} in float32, "
        f"MFU {hardware.mfu:g}"
    )
    out.append(
        f"bandwidth {hardware.bandwidth / GIGA:.0f} GB/s of memory, {hardware.interconnect / GIGA:.0f} GB/s "
        f"between devices, {hardware.host / GIGA:.0f} GB/s to the host, {hardware.disk / GIGA:g} GB/s to the disk"
    )
    for stage in plan.stages:
        length = stage.length
        out.append(
            f"{stage.name:<12} {plural(length.total_steps, 'step')} in {plural(length.epochs, 'epoch')}, "
            f"{plural(length.micro_batches, 'forward')} of {plural(stage.forward_rows, 'sequence')} a step and "
            "device, "
            f"{stage.tokens(text) / 1e6:.1f}M tokens"
        )
    main = plan.main
    out.append(f"tokens per epoch of the main job {plan.tokens_per_epoch / 1e6:.2f}M")
    out.append(
        f"a step is {plan.tokens_per_step:,.0f} tokens on each device; AdamW and casting weights take a tenth of "
        f"one of {plan.worthwhile:,.0f} tokens, and more of a smaller one (train.batch_size)"
    )
    if main.written:
        out.append(f"text written {plural(round(main.written), 'answer')} in {plural(main.rounds, 'round')}")
    return out


def work_table(plan: Plan) -> Table:
    """FLOPs and time of every phase."""
    table = Table(title="work on all devices, and time with the work spread over them")
    for name in ("phase", "PFLOPs", "output layer", "time", "bound by"):
        table.add_column(name, justify="left" if name in ("phase", "bound by") else "right")
    for phase in plan.phases:
        share = phase.work.head / phase.work.total if phase.work.total else 0.0
        table.add_row(
            phase.name,
            f"{phase.work.total / 1e15:,.1f}",
            f"{100 * share:.0f} %",
            duration(phase.seconds),
            phase.bound,
        )
    work, seconds = (sum(p.work.total for p in plan.phases), sum(p.seconds for p in plan.phases))
    table.add_row("all", f"{work / 1e15:,.1f}", "", duration(seconds), "")
    table.caption = (
        f"dev set and padding are not in it; test sets and exposure take {duration(plan.greedy)} without sampled "
        f"answers, {duration(plan.sampled)} with them"
    )
    return table


PARTS = {
    "weights": "student's weights",
    "gradients": "gradients",
    "optimiser": "moments, clip network",
    "teacher": "teacher",
    "gathered": "gathered for a while",
    "activations": "activations",
    "tiles": "logits tiles, states",
    "kv_cache": "KV cache of a round",
}


def memory_table(plan: Plan) -> Table:
    """Bytes of one device by strategy, in GiB; the phases are not sums of the parts, which come and go."""
    table = Table(title=f"GiB on one of {plural(plan.world_size, 'device')}")
    accounts = [option.account for option in plan.options]
    table.add_column("strategy, teacher")
    for row in accounts:
        table.add_column(f"{row.strategy}\n{row.placement}", justify="right")

    def line(name: str, *values: int) -> None:
        table.add_row(name, *(f"{value / 2**30:.1f}" for value in values))

    for part, name in PARTS.items():
        line(name, *(getattr(row, part) for row in accounts))
    table.add_section()
    for stage in accounts[0].sft:
        line(f"peak of {stage}", *(row.sft[stage] for row in accounts))
    line("peak of training", *(row.training for row in accounts))
    line("peak of writing", *(row.generation for row in accounts))
    line("peak of test sets", *(row.tests for row in accounts))
    table.add_row("fits", *("yes" if row.fits else "no" for row in accounts))
    table.add_row("largest micro-batch", *(str(row.largest_micro_batch) for row in accounts))
    table.caption = (
        f"{usable(plan.available) / 2**30:.1f} of {plan.available / 2**30:.1f} GiB may be used: {RESERVED:.0%} is "
        "left to the CUDA context and to holes"
    )
    return table


HOST = {
    "models": "models of their own",
    "checkpoints": "copies of a checkpoint",
    "text": "rows and a round of text",
    "own": "in all",
    "mapped": "mapped files, once a node",
}


def host_table(plan: Plan) -> Table:
    """Bytes of a node's own memory by strategy, in GiB."""
    table = Table(title=f"GiB of host memory on one node of {plural(plan.devices, 'device')}")
    table.add_column("strategy, teacher")
    for option in plan.options:
        table.add_column(f"{option.account.strategy}\n{option.account.placement}", justify="right")
    for part, name in HOST.items():
        table.add_row(name, *(f"{getattr(option.host, part) / 2**30:.1f}" for option in plan.options))
    table.caption = (
        "all processes of the first node; pages of mapped files are shared, and dropped where memory is short"
    )
    return table


def checkpoint_table(plan: Plan) -> Table:
    """What resume points take: disk, and the time that training stands still for them."""
    table = Table(title=f"checkpoints, written at {plan.hardware.disk / GIGA:g} GB/s")
    for name in ("stage", "one", "kept", "disk at most", "saves", "copied in", "written in", "held up"):
        table.add_column(name, justify="left" if name == "stage" else "right")
    for one in plan.saved:
        table.add_row(
            one.stage,
            readable(one.size),
            str(one.kept),
            readable(one.disk),
            f"{one.saves:,}",
            duration(one.copy),
            duration(one.write),
            duration(one.held),
        )
    table.caption = "a step waits for the copy; a round of text, and the end, until it is written"
    return table


def traffic_table(plan: Plan) -> Table:
    """What devices send, and the run's time with it."""
    table = Table(title="sent by each device in the main job; time of all stages, nothing overlapped")
    for name in ("strategy", "per step", "per round", "host, per epoch", "time sent", "time in all"):
        table.add_column(name, justify="left" if name == "strategy" else "right")
    for option in plan.options:
        sent = option.traffic
        table.add_row(
            f"{option.account.strategy} {option.account.placement}",
            readable(sent.step),
            readable(sent.round),
            readable(sent.host_epoch + sent.host_step * plan.main.length.steps_per_epoch),
            duration(option.communication_seconds),
            duration(option.seconds),
        )
    return table


TABLES = (work_table, memory_table, host_table, checkpoint_table, traffic_table)


def configured(plan: Plan) -> str:
    """One line: whether it fits as the configuration stands."""
    option = plan.configured
    if option is None:
        return "as configured: no such strategy on these devices"
    return f"as configured: {_name(option)}, {'fits' if option.account.fits else 'does not fit'}"


def verdict(plan: Plan) -> str:
    """One line: which strategy, or what to change."""
    best = plan.recommended
    if best is None:
        return f"fits under no strategy: {_advice(plan)}"
    fitting = [_name(option) for option in plan.options if option.account.fits]
    return (
        f"fits under {', '.join(fitting)}; recommended: trainer.strategy={best.account.strategy} "
        f"teacher.placement={best.account.placement}, {duration(best.seconds)}"
    )


def _name(option: Option) -> str:
    return f"{option.account.strategy} {option.account.placement}"


def _advice(plan: Plan) -> str:
    """What the option that is nearest to fitting lacks."""
    nearest = min(plan.options, key=lambda option: option.account.peak).account
    over = readable(nearest.peak - usable(plan.available))
    keys = {
        "training": "train.micro_batch_size",
        "generation": "scrg.batch_size",
        "tests": "evaluation.batch_size",
    }
    stages = {f"{name} SFT": f"{name}.sft.micro_batch_size" for name in ("teacher", "student")}
    key = (keys | stages)[nearest.phase]
    return (
        f"{nearest.strategy} {nearest.placement} is nearest, {over} too much in {nearest.phase}; lower {key}, or "
        "give more devices"
    )
