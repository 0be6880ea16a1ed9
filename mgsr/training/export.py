"""`mgsr export`: a run's student as a plain transformers folder, or its adapters as peft's, with a model card."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel, PreTrainedTokenizerBase

from mgsr import __version__, models
from mgsr.config.load import ExperimentConfig
from mgsr.models.from_config import quiet_transformers, with_adapters
from mgsr.runtime.errors import UserError
from mgsr.runtime.files import write_atomically
from mgsr.training.base_models import Base, as_trained, base_location, load_base
from mgsr.training.checkpoint import BEST, newest_whole
from mgsr.training.run_folder import STUDENT, load_run_config
from mgsr.training.trainer import load_student


def load_run(run: str | Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """The best student of a run (the last one where no dev set chose), adapters merged, and its tokenizer.

    Needs nothing but the run's own folder; with adapters, also the model they stand on.

    Raises:
        UserError: not a run folder, no checkpoint in it yet, or the adapters' base is gone or has changed.
    """
    model, tokenizer = _load_best(Path(run))
    merged = models.merge_lora(model) if models.has_adapters(model) else model
    return merged.eval(), tokenizer


def _load_best(folder: Path) -> tuple[Any, PreTrainedTokenizerBase]:
    """As `load_run`, adapters not merged."""
    config = load_run_config(folder)
    best = folder / "checkpoints" / BEST
    checkpoint = best if best.exists() else newest_whole(folder)
    if checkpoint is None or not (folder / STUDENT / "config.json").exists():
        raise UserError(f"{folder}: no checkpoint yet; finish the run with mgsr train --resume {folder}")
    quiet_transformers()
    tokenizer = models.load_tokenizer(str(folder / STUDENT))
    if config.student.lora.r:
        model = with_adapters(as_trained(load_base(folder, config, tokenizer), config.trainer.precision), config)
    else:
        model = _shape(folder / STUDENT, config)
    load_student(model, checkpoint)
    return model, tokenizer


def _shape(folder: Path, config: ExperimentConfig) -> PreTrainedModel:
    """A model of the student's shape; its weights are still to be filled in."""
    code = config.student.trust_remote_code
    shape = AutoConfig.from_pretrained(folder, trust_remote_code=code)
    return AutoModelForCausalLM.from_config(
        shape, dtype=models.parse_dtype(config.student.dtype), trust_remote_code=code
    )


def export(run: str | Path, out: str | Path, *, merge: bool = False) -> Path:
    """Write a run's student: as `AutoModelForCausalLM`'s folder, or as peft's folder of its adapters.

    Args:
        merge: add adapters into the weights, so that neither mgsr nor peft nor the base is needed to load
            them. A run without adapters has nothing to merge.

    Raises:
        UserError: not a run, no checkpoint, `out` exists and is not empty; with adapters, their base is gone,
            has changed, or (without `merge`) lies in no folder that peft could load it from.
    """
    folder, out = Path(run), Path(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise UserError(f"{out}: exists already; choose an empty or new folder")
    config = load_run_config(folder)
    base = base_location(folder, config) if config.student.lora.r and not merge else None
    if base is None:
        model, tokenizer = load_run(folder)
        models.save_model_folder(model, tokenizer, out)
    else:
        adapters, tokenizer = _load_best(folder)
        models.save_adapter_folder(adapters, tokenizer, out, base=base.location, revision=base.revision)
    write_atomically(out / "README.md", model_card(config, _metrics(folder), base))
    return out


def _metrics(run: Path) -> dict[str, Any]:
    try:
        return json.loads((run / "metrics.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        return {}


def model_card(config: ExperimentConfig, metrics: dict[str, Any], base: Base | None = None) -> str:
    """What the model is, how it was made, what was measured.

    Args:
        base: what the folder's adapters stand on; None where the weights are whole.
    """
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
    kept = f"- low-rank adapters on `{base.location}`{_at(base)} (SHA-256 {base.content})\n" if base else ""
    return f"""---
library_name: {"peft" if base else "transformers"}
pipeline_tag: text-generation
tags: [distillation, mgsr]
---

# {config.experiment} / {config.arm} (seed {config.seed})

A student distilled from `{config.teacher.source or "no teacher"}` with mgsr {__version__}, by the method of
*Multi-Granularity Semantic Revision for Large Language Model Distillation* (arXiv 2407.10068).

- training data: `{config.data.train}`; prompts follow the `{config.data.template}` template
- loss weights: SFT {objective.w_sft:g}, {objective.divergence} {objective.w_dac:g}, span {objective.w_span:g}
- sequences: {made}
{kept}
{table if rows else "Not evaluated yet."}

```python
{_loading(base)}
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
```

The licence is that of the student's origin and of the training data; see there.
"""


def _at(base: Base) -> str:
    return f" at revision `{base.revision}`" if base.revision else ""


def _loading(base: Base | None) -> str:
    """The lines of a model card that load the model."""
    imported = "from transformers import AutoModelForCausalLM, AutoTokenizer"
    if base is None:
        return f'{imported}\n\nmodel = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
    words = [json.dumps(base.location), *([f"revision={json.dumps(base.revision)}"] if base.revision else [])]
    lines = [
        f"from peft import PeftModel\n{imported}\n",
        f"base = AutoModelForCausalLM.from_pretrained({', '.join(words)})",
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
    ]
    return "\n".join(lines)
