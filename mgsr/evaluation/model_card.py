"""What an exported model says of itself: a card for people, and how it is asked for `mgsr evaluate`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from mgsr import __version__
from mgsr.config.load import unfinished
from mgsr.config.schema import DataConfig, EvaluationConfig, ExperimentConfig
from mgsr.data.chat import CHAT
from mgsr.data.templates import TEMPLATES
from mgsr.runtime.errors import ConfigError, DataError
from mgsr.runtime.json_files import read_json
from mgsr.runtime.wording import plural

CARD, ASKED = "README.md", "mgsr.json"
_REMEDY = "export the run again, or delete the file and name the prompt template by --template"
_KEPT = {
    "data": ("template", "max_length", "max_prompt_length"),
    "evaluation": ("max_new_tokens", "temperature", "top_p", "seeds", "rouge_tokenizer"),
}
"""What holds for an export as for its run; end token and names of fields stand beside them."""


@dataclass(frozen=True)
class Base:
    """The model that adapters stand on: folder or hub id, revision on the hub, fingerprint of its weights."""

    location: str
    revision: str | None
    content: str


def how_it_is_asked(config: ExperimentConfig, end_token: str) -> str:
    """The content of an export's `mgsr.json`: the keys of its run that say how it is asked and measured."""
    sections = {"data": config.data, "evaluation": config.evaluation}
    found = {name: {key: getattr(sections[name], key) for key in keys} for name, keys in _KEPT.items()}
    found["data"] |= {"end_token": end_token, "fields": asdict(config.data.fields)}
    return json.dumps(found, indent=2, ensure_ascii=False) + "\n"


def as_it_was_asked(folder: Path) -> tuple[DataConfig, EvaluationConfig]:
    """Rows, prompts and measurement as a model folder's `mgsr.json` has them; the defaults where there is none.

    Raises:
        DataError: it is broken, or holds keys or values that the configuration does not take.
    """
    found = read_json(folder / ASKED, dict.fromkeys(_KEPT, dict), _REMEDY, missing={})
    try:
        config = unfinished(tree=found)
    except ConfigError as error:
        raise DataError(f"{folder / ASKED}: {error}; {_REMEDY}") from None
    return config.data, config.evaluation


def model_card(config: ExperimentConfig, metrics: dict[str, Any], base: Base | None = None) -> str:
    """What the model is, how it was made, what was measured.

    Args:
        metrics: of a finished run, its `metrics.json`; otherwise empty.
        base: what the folder's adapters stand on; None where the weights are whole.
    """
    rows = [
        f"| {name} | {value['rouge_l']:.2f} | {_sampled(value)} | {_percent(value)} | {value['examples']} |"
        for name, value in metrics.get("result", {}).items()
    ]
    table = "\n".join(
        ["| test set | ROUGE-L, greedy | ROUGE-L, sampled | right | rows |", "|---|---|---|---|---|", *rows]
    )
    objective, scrg = config.objective, config.scrg
    made = (
        f"text written by {scrg.text}"
        + (f", {plural(scrg.passes, 'correction')} per sequence" * (scrg.text == "student"))
        if scrg.enabled
        else "ground truth only"
    )
    divergence = objective.divergence
    if objective.written_divergence:
        divergence += f" ({objective.written_divergence} on written text)"
    if "divergence_factor" in metrics:
        divergence += f", its gradient matched by the factor {metrics['divergence_factor']:.4g},"
    kept = f"- low-rank adapters on `{base.location}`{_at(base)} (SHA-256 {base.content})\n" if base else ""
    return f"""---
library_name: {"peft" if base else "transformers"}
pipeline_tag: text-generation
tags: [distillation, mgsr]
---

# {config.experiment} / {config.arm} (seed {config.seed})

A student distilled from `{config.teacher.source or "no teacher"}` with mgsr {__version__}, by the method of
*Multi-Granularity Semantic Revision for Large Language Model Distillation* (arXiv 2407.10068).

- training data: `{config.data.train}`; prompts follow the `{config.data.template}` template{_whose(config.data)}
- loss weights: SFT {objective.w_sft:g}, {divergence} {objective.w_dac:g}, span {objective.w_span:g}
- sequences: {made}
{kept}
{table if rows else "The run was not finished when this was exported: a student on its way, not evaluated."}

```python
{_loading(base)}
tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")
{_asking(config.data.template)}
answer = model.generate(**inputs, max_new_tokens={config.evaluation.max_new_tokens})
print(tokenizer.decode(answer[0, inputs["input_ids"].shape[1]:], skip_special_tokens=True))
```

The licence is that of the student's origin and of the training data; see there.
"""


def _at(base: Base) -> str:
    return f" at revision `{base.revision}`" if base.revision else ""


def _loading(base: Base | None) -> str:
    """The lines of a model card that load the model."""
    names = "AutoModelForCausalLM, AutoTokenizer" + (", GenerationConfig" if base else "")
    imported = f"from transformers import {names}"
    if base is None:
        return f'{imported}\n\nmodel = AutoModelForCausalLM.from_pretrained("THIS_FOLDER")'
    words = [json.dumps(base.location), *([f"revision={json.dumps(base.revision)}"] if base.revision else [])]
    lines = [
        f"from peft import PeftModel\n{imported}\n",
        f"base = AutoModelForCausalLM.from_pretrained({', '.join(words)})",
        'model = PeftModel.from_pretrained(base, "THIS_FOLDER")',
        'model.generation_config = GenerationConfig.from_pretrained("THIS_FOLDER")',
    ]
    return "\n".join(lines)


def _whose(data: DataConfig) -> str:
    return ", which the tokenizer holds: give it a list of messages" if data.template == CHAT else ""


def _asking(template: str) -> str:
    """The lines of a model card that make the input of a question."""
    if template != CHAT:
        layout = json.dumps(TEMPLATES[template].without_input, ensure_ascii=False)
        return f'prompt = {layout}.format(instruction="...")\ninputs = tokenizer(prompt, return_tensors="pt")'
    return (
        'messages = [{"role": "user", "content": "..."}]\n'
        "inputs = tokenizer.apply_chat_template(\n"
        '    messages, add_generation_prompt=True, return_dict=True, return_tensors="pt"\n'
        ")"
    )


def _sampled(value: Mapping[str, Any]) -> str:
    sampled = value.get("sampled")
    return f"{sampled['rouge_l']:.2f}" if sampled else "n/a"


def _percent(value: Mapping[str, Any]) -> str:
    """Accuracy, or exact match where rows cannot be checked."""
    found = value.get("accuracy", value.get("exact_match"))
    return "n/a" if found is None else f"{found:.1f} %"
