"""`mgsr export`: a run's student as a plain transformers folder, with tokenizer and model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mgsr import __version__, models
from mgsr.checkpoints import BEST, newest_whole
from mgsr.config import ExperimentConfig
from mgsr.durable import write_atomically
from mgsr.errors import UserError
from mgsr.fitting import load_student
from mgsr.job import adapted
from mgsr.origins import quiet_transformers
from mgsr.runs import STUDENT, TEACHER, load_run_config
from mgsr.stages import prepare_teacher


def load_run(run: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The best student of a run (the last one where no dev set chose), adapters merged, and its tokenizer.

    Needs nothing but the run's own folder.

    Raises:
        UserError: not a run folder, or no checkpoint in it yet.
    """
    folder = Path(run)
    config = load_run_config(folder)
    best = folder / "checkpoints" / BEST
    checkpoint = best if best.exists() else newest_whole(folder)
    if checkpoint is None or not (folder / STUDENT / "config.json").exists():
        raise UserError(f"{folder}: no checkpoint yet; finish the run with mgsr train --resume {folder}")
    quiet_transformers()
    tokenizer = models.load_tokenizer(str(folder / STUDENT))
    model = adapted(_shape(folder / STUDENT, config), config)
    load_student(model, checkpoint)
    merged = models.merge_lora(model) if config.student.lora.r else model
    return merged.eval(), tokenizer


def _shape(folder: Path, config: ExperimentConfig) -> PreTrainedModel:
    """A model of the student's shape; its weights are still to be filled in."""
    code = config.student.trust_remote_code
    shape = AutoConfig.from_pretrained(folder, trust_remote_code=code)
    return AutoModelForCausalLM.from_config(
        shape, dtype=models.parse_dtype(config.student.dtype), trust_remote_code=code
    )


def load_run_teacher(run: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The teacher of a run, fine-tuned as it was.

    Raises:
        UserError: the run had none, or it is no longer in the cache beside the run.
    """
    folder = Path(run)
    config = load_run_config(folder)
    try:
        name = json.loads((folder / TEACHER).read_text(encoding="utf-8"))["cache"]
    except (OSError, ValueError, KeyError):
        name = None
    if name is None:
        raise UserError(f"{run}: this run had no teacher; name one with --teacher FOLDER")
    quiet_transformers()
    cached = folder.resolve().parents[2] / "cache" / str(name)
    if (cached / "config.json").exists():
        model = models.load_causal_lm(
            str(cached), dtype=config.teacher.dtype, trust_remote_code=config.teacher.trust_remote_code
        )
        return model, models.load_tokenizer(str(cached))
    if config.teacher.source == "init" or config.teacher.sft.enabled:
        raise UserError(f"{run}: its teacher is no longer at {cached}; name one with --teacher FOLDER")
    teacher = prepare_teacher(config, [])
    assert teacher is not None
    return teacher.model, teacher.tokenizer


def export(run: str | Path, out: str | Path) -> Path:
    """Write `AutoModelForCausalLM`'s folder of a run's student; mgsr is not needed to load it.

    Raises:
        UserError: not a run, no checkpoint, or `out` exists and is not empty.
    """
    out = Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose an empty or new folder")
    config = load_run_config(run)
    model, tokenizer = load_run(run)
    models.save_model_folder(model, tokenizer, out)
    write_atomically(out / "README.md", model_card(config, _metrics(Path(run))))
    return out


def _metrics(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def model_card(config: ExperimentConfig, metrics: dict[str, Any]) -> str:
    """What the model is, how it was made, what was measured."""
    rows = [
        f"| {name} | {value['rouge_l']:.2f} | {value['rouge_l_std']:.2f} | {value['examples']} |"
        for name, value in metrics.get("result", {}).items()
    ]
    table = "\n".join(["| test set | ROUGE-L | std over sampling seeds | rows |", "|---|---|---|---|", *rows])
    objective, scrg = config.objective, config.scrg
    made = (
        f"text written by {scrg.text}, {scrg.passes} correction(s) per sequence"
        if scrg.enabled
        else "ground truth only"
    )
    return f"""---
library_name: transformers
pipeline_tag: text-generation
tags: [distillation, mgsr]
---

# {config.experiment} / {config.arm} (seed {config.seed})

A student distilled from `{config.teacher.source or "no teacher"}` with mgsr {__version__}, by the method of
*Multi-Granularity Semantic Revision for Large Language Model Distillation* (arXiv 2407.10068).

- training data: `{config.data.train}`; prompts follow the `{config.data.template}` template
- loss weights: SFT {objective.w_sft:g}, {objective.divergence} {objective.w_dac:g}, span {objective.w_span:g}
- sequences: {made}

{table if rows else "Not evaluated yet."}

```python
from transformers import AutoModelForCausalLM, AutoTokenizer

model = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```

The licence is that of the student's origin and of the training data; see there.
"""
