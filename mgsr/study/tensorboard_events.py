"""What a study writes for TensorBoard: events of recorded runs, and the layout of their curves.

A recorded run is not repeated, whichever study has recorded it, and has no event files in this study's folder.
They are written from its result file: the recorded scalars, thinned, under a run's own tags, and the same HPARAMS
session. So recorded and repeated runs share charts and one HPARAMS table.

The file is `events.out.tfevents.0.<fingerprint>.recorded`. The suffix tells it from the event files of a run. The
fingerprint is that of its content: a result that was recorded anew is written anew, and processes that write at
the same time write the same file. The time in its name is 0, so that it is read before any event file of a run,
whose session start purges all steps before it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from mgsr.config.load import fingerprint
from mgsr.config.schema import ExperimentConfig
from mgsr.runtime.files import write_whole
from mgsr.training.trainer import event_file, shown_values

SUFFIX = ".recorded"

LAYOUT = {
    "quality": {"dev ROUGE-L": ["Multiline", ["val/rouge_l"]], "dev loss": ["Multiline", ["val/loss"]]},
    "loss": {"terms": ["Multiline", [r"train/loss.*"]]},
    "clipping": {
        "bounds": ["Multiline", ["dac/lower$", "dac/upper$"]],
        "retained mass": ["Multiline", ["dac/retained_mass$"]],
    },
    "text": {
        "diversity": ["Multiline", [r"scrg/distinct_.*", "scrg/self_bleu"]],
        "disagreement": ["Multiline", ["scrg/disagreement_rate", "scrg/corrected_fraction"]],
    },
    "cost": {
        name: ["Multiline", [f"cost/{curve}"]]
        for name, curve in (("seconds", "seconds"), ("tokens", "tokens"), ("TFLOPs", "tera_flops"))
    },
}
"""TensorBoard's CUSTOM SCALARS tab: what belongs together, of all runs of a study."""


def write_events(folder: Path, config: ExperimentConfig, result: Mapping[str, Any]) -> bool:
    """Write a recorded run's event file, unless the folder has it already, or event files of a run.

    Args:
        folder: of the run; made where it is missing. A folder with nothing else is that of a run not begun.
        config: of the run as this study names it, for the HPARAMS tab.
        result: content of its result file.

    Returns:
        Whether a file was written.

    Raises:
        UserError: the disk is full, or the folder or that of temporary files cannot be written to.
    """
    hyper_parameters = _hyper_parameters(config, result)
    metrics = {"hp/rouge_l": result["metrics"]["result"]["test"]["rouge_l"]}
    steps, curves = result["metrics"]["steps"], result["curves"]
    name = f"events.out.tfevents.0.{fingerprint(hyper_parameters, metrics, steps, curves)}{SUFFIX}"
    there = [path.name for path in folder.glob("events.*")]
    if name in there or not all(other.endswith(SUFFIX) for other in there):
        return False
    remove_events(folder)
    content = event_file(hyper_parameters, metrics, steps, curves)
    write_whole(folder / name, lambda file: file.write(content))
    return True


def remove_events(folder: Path) -> None:
    """Remove what `write_events` wrote: curves of an earlier result must not mix with those of a new run."""
    for path in folder.glob(f"events.*{SUFFIX}"):
        path.unlink(missing_ok=True)


def _hyper_parameters(config: ExperimentConfig, result: Mapping[str, Any]) -> dict[str, Any]:
    """As `mgsr.training.trainer.fit` logs them; the number of threads is the one that the run had."""
    shown = shown_values(asdict(config))
    shown["trainer.threads"] = result["environment"].get("threads", shown["trainer.threads"])
    return shown


def write_layout(folder: Path) -> None:
    """Once: TensorBoard merges the layouts that it finds."""
    if any(folder.glob("events.*")):
        return
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:
        writer.add_custom_scalars(LAYOUT)
