"""The callback that counts what training costs, and puts it beside the dev figures."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import lightning as L

from mgsr.rounds.store import read_manifest
from mgsr.runtime.meter import Meter, added, overall
from mgsr.runtime.ranks import gathered, is_first
from mgsr.training.datamodule import DistillationDataModule
from mgsr.training.module import DistillationModule


class CostLog(L.Callback):
    """Seconds and tokens of training steps and of the dev set; checkpointed, so that a resumed run counts on.

    Seconds are those of all devices together, as those of the rounds are.

    After every look at the dev set `cost/seconds` and `cost/tokens` say what had been spent until then, text
    included: arms can be compared at equal cost.
    """

    def __init__(self) -> None:
        self.meter = Meter()
        self._start = 0.0

    def state_dict(self) -> dict[str, Any]:
        meters = gathered((self.meter.seconds, self.meter.tokens))
        return {"seconds": added(*(m[0] for m in meters)), "tokens": added(*(m[1] for m in meters))}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if is_first():
            self.meter.seconds, self.meter.tokens = dict(state_dict["seconds"]), dict(state_dict["tokens"])

    def on_train_batch_start(self, *args: Any, **kwargs: Any) -> None:
        self._start = time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(pl_module, DistillationModule)
        models = 2 if pl_module.teacher is not None and pl_module.objective.needs_teacher else 1
        read = models * int(batch.attention_mask.sum())
        self.meter.add("training", time.monotonic() - self._start, read)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.monotonic()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.meter.add("validation", time.monotonic() - self._start)
        data = trainer.datamodule  # type: ignore[attr-defined]
        if not isinstance(data, DistillationDataModule):
            return
        spent = self.totals(data)
        # Lightning counts the steps of `val/` from 0: the two must meet
        step = trainer.global_step - 1
        if trainer.logger is None:
            return
        trainer.logger.log_metrics({f"cost/{u}": overall(spent, u) for u in ("seconds", "tokens")}, step)

    def totals(self, data: DistillationDataModule) -> dict[str, float]:
        """Everything until now, of all ranks, each of which has to ask; rounds of text tell their own part."""
        return added(*gathered(self.meter.totals()), round_costs(data.run_folder, data.round))


def round_costs(run_folder: Path, last: int | None = None) -> dict[str, float]:
    """What the finished rounds of a run took, up to `last`: a run taken up again may have later ones on disk."""
    paths = sorted((run_folder / "scrg").glob("round=*"))
    wanted = (path for path in paths if last is None or int(path.name.removeprefix("round=")) <= last)
    return added(*((read_manifest(path) or {}).get("costs", {}) for path in wanted))
