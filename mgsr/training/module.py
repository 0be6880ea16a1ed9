"""The LightningModule: a frozen teacher, a trainable student, a clip network, one objective.

Supervised fine-tuning is the same module without a teacher. N micro-batches equal one big batch and two ranks
one: every term arrives divided by the denominator of the whole optimiser step, and what Lightning
(accumulation) and DDP (ranks) divide by is multiplied back.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgsr import models
from mgsr.config.schema import TrainConfig, TrainerConfig
from mgsr.data.collate import Batch
from mgsr.losses import LossTerms, Objective, Weights
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.output_layer import OutputLayer
from mgsr.runtime.devices import computing_dtype, working_device
from mgsr.runtime.errors import NonFiniteLossError
from mgsr.runtime.progress import say
from mgsr.runtime.ranks import gathered
from mgsr.runtime.rng import seed_dropout
from mgsr.training.fsdp import whole
from mgsr.training.optim import build_optimizer, scales_gradients, takes_fused, use_fused
from mgsr.training.placement import Placement
from mgsr.training.step_metrics import StepMetrics, gradient_norm, non_finite, term_gradient_norms

# the student -> ROUGE-L of each of this rank's dev prompts
Predict = Callable[[PreTrainedModel], Sequence[float]]

# last hidden states [B, L, H] and the output layer that makes logits of them
States = tuple[Tensor, OutputLayer]
NoStates = tuple[None, None]


class DistillationModule(L.LightningModule):
    """Distils `teacher` into `student` by `objective`.

    Args:
        student: the model that is trained, exported and checkpointed.
        teacher: frozen; None for supervised fine-tuning.
        objective: the loss with its clipping bounds; a clip network in it is trained along.
        train: optimisation; trainer: how often things are logged; total_steps: length of the schedule.
        micro_batches: forwards per rank and optimiser step.
        vocab_size: number of token ids that both models share.
        clip_lr: learning rate of the clip network.
        predict: writes the dev set with the student as it stands and scores it, for `val/rouge_l`; None: it is not
            written.
        check_stop: called between two batches of long work; may raise to stop.
        seed: of dropout, per step and rank.
        section: of the configuration that `train` is, for advice.
        placement: of the teacher, see `teacher.placement`.
    """

    def __init__(
        self,
        student: PreTrainedModel,
        teacher: PreTrainedModel | None,
        objective: Objective,
        *,
        train: TrainConfig,
        trainer: TrainerConfig,
        total_steps: int,
        micro_batches: int,
        vocab_size: int,
        clip_lr: float = 1e-3,
        predict: Predict | None = None,
        check_stop: Callable[[], None] = lambda: None,
        seed: int = 0,
        section: str = "train",
        placement: str = "replicated",
    ) -> None:
        super().__init__()
        self.student = student
        self.clip = objective.clip_network
        dtype = computing_dtype(trainer.precision, working_device(trainer.accelerator))
        self.placement = Placement(student, teacher, placement, compile=trainer.compile, dtype=dtype)
        self._dev_phase = ExitStack()
        self.objective = objective
        self.config, self.logging = train, trainer
        self.total_steps, self.micro_batches = total_steps, micro_batches
        self.vocab_size, self.clip_lr, self.seed = vocab_size, clip_lr, seed
        self.predict, self.check_stop = predict, check_stop
        self.section = section
        self._advice = (
            f"the last good checkpoints are kept; resume with {section}.max_nonfinite_steps=N to leave some steps "
            f"out, or begin another arm with a lower {section}.lr or a higher {section}.warmup_ratio"
        )
        self.skipped = 0
        self._norms: list[tuple[nn.Module, Tensor]] = []
        self.step_metrics = StepMetrics(objective)
        # the last point of every curve, in checkpoints too: a run taken up behind its last step still has them
        self.latest: dict[str, float] = {}
        if trainer.precision == "64-true":
            # now: Lightning casts behind the loading of a checkpoint, which would round it
            self.double()
        if train.gradient_checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def teacher(self) -> PreTrainedModel | None:
        return self.placement.teacher

    def configure_model(self) -> None:
        mesh = self.device_mesh
        self.placement.shard(self, None if mesh is None else mesh["data_parallel"], "losses")

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # what adapters stand on is frozen, and known by its fingerprint
        checkpoint["state_dict"] = models.without_base(checkpoint["state_dict"], self.student, "student.")
        own = {"latest": dict(self.latest), "skipped": self.skipped, "factor": self.objective.factor}
        checkpoint["figures"] = own | self.step_metrics.state()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = models.with_base(checkpoint["state_dict"], self.student, "student.")
        models.check_state(str(self.trainer.ckpt_path), checkpoint["state_dict"], self.state_dict())
        use_fused(checkpoint["optimizer_states"], takes_fused(self.trainer))
        figures = checkpoint["figures"]
        self.latest, self.skipped = dict(figures["latest"]), int(figures["skipped"])
        self.objective.factor = float(figures.get("factor", 1.0))
        self.step_metrics.load(figures)

    def on_fit_start(self) -> None:
        self.placement.to_device(self.device)

    def on_train_start(self) -> None:
        # from_pretrained gives eval mode; a run resumed within an epoch calls no on_train_epoch_start
        self.student.train()

    def on_train_epoch_start(self) -> None:
        self.student.train()
        self.step_metrics.restart()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        first = batch_idx % self.micro_batches == 0
        due = first and self.global_step % self.logging.grad_norm_every_n_steps == 0
        self.objective.progress = self.global_step / max(1, self.total_steps - 1)
        # a gradient of a sharded model exists only in parts, and only after backward
        if due and not self.placement.sharded:
            self._log_term_norms(batch_idx)
        self._seed_dropout(batch_idx)
        terms = self.losses(batch, self._teacher_states(batch), self._wants_rows(batch, first))
        self.step_metrics.add(batch, terms)
        # Lightning divides by the micro-batches and DDP by the ranks; the denominators are global already
        return (terms.total + terms.clip_penalty) * (self.micro_batches * self.trainer.world_size)

    def _seed_dropout(self, batch_idx: int) -> None:
        seed_dropout((self.seed, self.global_step, batch_idx, self.global_rank), self.device)

    def _teacher_states(self, batch: Batch) -> States | NoStates:
        needed = self.teacher is not None and self.objective.needs_teacher
        return self.placement.teacher_states(batch) if needed else (None, None)

    def losses(self, batch: Batch, teacher: States | NoStates, collect_rows: bool) -> LossTerms:
        """The terms of a micro-batch.

        Under FSDP2 the output layer and the clip network are whole within this method alone.
        """
        student = self.placement.student_states(batch)
        return self.objective(
            batch.targets, *student, *teacher, vocab_size=self.vocab_size, collect_rows=collect_rows
        )

    def _log_term_norms(self, batch_idx: int) -> None:
        """Of the optimiser step that begins with this micro-batch: of all its micro-batches and ranks.

        They are read ahead and once more for every term, so that one gradient at a time lies in memory.
        """
        strategy, ahead = self.trainer.strategy, range(batch_idx, batch_idx + self.micro_batches)
        batches = self.trainer.train_dataloader.dataset  # type: ignore[union-attr]

        def losses(weights: Weights) -> Iterator[Tensor]:
            for index in ahead:
                self._seed_dropout(index)
                batch = strategy.batch_to_device(batches[index])
                teacher = self._teacher_states(batch) if weights[1] or weights[2] else (None, None)
                states = *self.placement.student_states(batch, plain=True), *teacher
                yield self.objective(batch.targets, *states, vocab_size=self.vocab_size, weights=weights).total

        parameters = [p for p in self.student.parameters() if p.requires_grad]
        norms = term_gradient_norms(
            losses, self.objective.weights, parameters, partial(strategy.reduce, reduce_op="sum")
        )
        self._log_curves({f"grad_norm/{name}": norm for name, norm in norms.items()})

    def _wants_rows(self, batch: Batch, first: bool) -> bool:
        steered = isinstance(self.clip, ClipNetwork) and self.clip.objective == "priced"
        logged = first and self.global_step % self.logging.log_every_n_steps == 0
        return self.objective.needs_teacher and (steered or logged or any(batch.written))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        # before anything is read: a GPU still has the backward to do
        self.trainer.train_dataloader.dataset.prefetch()  # type: ignore[union-attr]
        self._norms = [(p, gradient_norm(p, self.device)) for p in (self.student, self.clip) if p is not None]
        names = "train/grad_norm", "train/grad_norm_clip"
        step, norms = self.step_metrics.reduce(
            self.trainer.strategy if self.trainer.world_size > 1 else None,
            {name: whole(norm) for name, (_, norm) in zip(names, self._norms, strict=False)},
        )
        bad = non_finite(step)
        if bad:
            self._leave_out(optimizer, f"{bad} became {step[bad.split(', ')[0]]}")
            return
        # within the step, so that a resume point written at its end has it
        self.step_metrics.steer_price(step)
        logged = self.global_step % self.logging.log_every_n_steps == 0
        if logged:
            curves = self.step_metrics.curves(step)
            if not self.global_step:
                del curves["train/tokens_per_second"]
            self.step_metrics.restart()
            self._log_curves(curves)
        norm = norms["train/grad_norm"]
        if not math.isfinite(norm) and not scales_gradients(self.trainer):
            self._leave_out(optimizer, f"the gradient became {norm}")
        elif logged:
            self._log_curves(norms)

    def _leave_out(self, optimizer: Any, what: str) -> None:
        """Skip the update of this step, while `max_nonfinite_steps` allows it: no gradient, no step of AdamW.

        Raises:
            NonFiniteLossError: it does not.
        """
        if self.skipped >= self.config.max_nonfinite_steps:
            raise NonFiniteLossError(f"step {self.global_step}: {what}; {self._advice}")
        self.skipped += 1
        optimizer.zero_grad(set_to_none=True)
        say(f"step {self.global_step}: {what}: left out ({self.skipped} of {self.config.max_nonfinite_steps})")

    def _log_curves(self, curves: dict[str, float]) -> None:
        """One point per curve, and in `trainer.callback_metrics`: `self.log` takes 0.2 ms over each of them."""
        # float32, as Lightning keeps them
        kept = torch.tensor(list(curves.values()), dtype=torch.float32)
        self.latest.update(zip(curves, kept.tolist(), strict=True))
        self.trainer.callback_metrics.update(zip(curves, kept.to(self.device).unbind(), strict=True))
        if self.logger is not None:
            self.logger.log_metrics(curves, self.global_step)

    def on_validation_epoch_start(self) -> None:
        self.student.eval()
        self._dev_phase.enter_context(self.placement.whole())
        self._dev = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.check_stop()
        states = *self.placement.student_states(batch, plain=True), None, None
        sft = self.objective(batch.targets, *states, weights=(1.0, 0.0, 0.0), vocab_size=self.vocab_size).sft
        tokens = batch.counts.ground_truth_tokens
        self._dev[0] += sft.double() * tokens
        self._dev[1] += tokens

    def on_validation_epoch_end(self) -> None:
        total = self._dev
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        loss = (total[0] / total[1].clamp(min=1)).float()
        self.log("val/loss", loss, rank_zero_only=False)
        self.latest["val/loss"] = float(loss)
        if self.predict is not None:
            # in Python's floats: a metric in the module tree would be cast to the precision of the weights
            scores = [score for rank in gathered(self.predict(self.placement.acting)) for score in rank]
            rouge_l = torch.tensor(math.fsum(scores) / len(scores))
            self.log("val/rouge_l", rouge_l, prog_bar=True)
            self.latest["val/rouge_l"] = float(rouge_l)
        self._dev_phase.close()
        self.student.train()

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = build_optimizer(
            self.student,
            self.clip,
            self.config,
            clip_lr=self.clip_lr,
            total_steps=self.total_steps,
            fused=takes_fused(self.trainer),
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Student and clip network have norms of their own: one must not shrink the other's step."""
        if self.config.grad_clip:
            for part, norm in self._norms:
                nn.utils.clip_grads_with_norm_(part.parameters(), self.config.grad_clip, norm)
