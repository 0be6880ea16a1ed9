"""The LightningModule: a frozen teacher, a trainable student, a clip network, one objective.

Supervised fine-tuning is the same module without a teacher. N micro-batches equal one big batch and two ranks
one: every term arrives divided by the denominator of the whole optimiser step, and what Lightning
(accumulation) and DDP (ranks) divide by is multiplied back.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from transformers import PreTrainedModel

from mgsr import models
from mgsr.clip_network import ClipNetwork
from mgsr.data.collate import Batch
from mgsr.errors import NonFiniteLossError
from mgsr.figures import StepFigures, non_finite, term_gradient_norms
from mgsr.forwards import seed_dropout, teacher_states
from mgsr.heads import OutputHead, last_hidden, output_head
from mgsr.metrics import RougeL
from mgsr.objective import Objective, clip_network
from mgsr.optimisation import build_optimizer
from mgsr.progress import say
from mgsr.schema import TrainConfig, TrainerConfig

# dev prompts of one rank -> (predictions, references)
Predict = Callable[[PreTrainedModel], tuple[Sequence[str], Sequence[Sequence[str]]]]


class DistillationModule(L.LightningModule):
    """Distils `teacher` into `student` by `objective`.

    Args:
        student: the model that is trained, exported and checkpointed.
        teacher: frozen; None for supervised fine-tuning. Held beside the module tree, so it is neither
            checkpointed nor optimised.
        objective: the loss with its clipping bounds; a clip network in it is trained along.
        train: optimisation; trainer: how often things are logged; total_steps: length of the schedule.
        micro_batches: forwards per rank and optimiser step.
        vocab_size: number of token ids that both models share.
        clip_lr: learning rate of the clip network.
        predict: writes the dev set with the student as it stands, for `val/rouge_l`.
        seed: of dropout, per step and rank.
        section: of the configuration that `train` is, for advice.
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
        seed: int = 0,
        section: str = "train",
    ) -> None:
        super().__init__()
        self.student = student
        self.clip = clip_network(objective)
        # a tuple hides the teacher from nn.Module's registration
        self._teacher = (teacher,)
        self.objective = objective
        self.config, self.logging = train, trainer
        self.total_steps, self.micro_batches = total_steps, micro_batches
        self.vocab_size, self.clip_lr, self.predict, self.seed = vocab_size, clip_lr, predict, seed
        self._advice = (
            f"the last good checkpoints are kept; resume with {section}.max_nonfinite_steps=N to leave some steps "
            f"out, or begin another arm with a lower {section}.lr or a higher {section}.warmup_ratio"
        )
        self.skipped = 0
        self.rouge_l = RougeL()
        self.stop_check: Callable[[], None] | None = None
        self.figures = StepFigures(objective)
        # the last point of every curve, in checkpoints too: a run taken up behind its last step still has them
        self.latest: dict[str, float] = {}
        # writing and the dev set keep the plain forward: their shapes change with every token
        self._read = torch.compile(last_hidden, dynamic=True) if trainer.compile else last_hidden
        self._clock = time.monotonic()
        if train.gradient_checkpointing:
            student.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})

    @property
    def teacher(self) -> PreTrainedModel | None:
        return self._teacher[0]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        # what adapters stand on is frozen, and known by its fingerprint
        checkpoint["state_dict"] = models.without_base(checkpoint["state_dict"], self.student, "student.")
        checkpoint["figures"] = {
            "latest": dict(self.latest),
            "likelihood_after": dict(self.figures.likelihood_after),
            "skipped": self.skipped,
            "tokens": self.figures.tokens,
            "slots": self.figures.slots,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["state_dict"] = models.with_base(checkpoint["state_dict"], self.student, "student.")
        figures = checkpoint["figures"]
        self.latest, self.skipped = dict(figures["latest"]), int(figures["skipped"])
        self.figures.likelihood_after = dict(figures["likelihood_after"])
        self.figures.tokens, self.figures.slots = int(figures["tokens"]), int(figures["slots"])

    def take_likelihoods(self) -> dict[int, float]:
        """Example id -> teacher log-likelihood per token of its model-written text; each is handed out once."""
        taken, self.figures.likelihood_after = self.figures.likelihood_after, {}
        return taken

    def check_stop(self) -> None:
        """Stop between two batches of long work, where the user has asked for it."""
        if self.stop_check is not None:
            self.stop_check()

    # -- training ---------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        if self.teacher is not None:
            self.teacher.to(self.device).eval().requires_grad_(False)  # type: ignore[arg-type]

    def on_train_start(self) -> None:
        # from_pretrained hands out eval mode; a run resumed within an epoch doesn't call on_train_epoch_start
        self.student.train()

    def on_train_epoch_start(self) -> None:
        self.student.train()
        self._restart_rate()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        seed_dropout((self.seed, self.global_step, batch_idx, self.global_rank), self.device)
        first = batch_idx % self.micro_batches == 0
        student, teacher, head, teacher_head = self._forward(batch)
        terms = self.objective(
            batch,
            student,
            head,
            teacher,
            teacher_head,
            vocab_size=self.vocab_size,
            collect_rows=self._wants_rows(batch, first),
        )
        if first and self.global_step % self.logging.grad_norm_every_n_steps == 0:
            # a compiled graph can go backward only once: measure on a plain one
            plain = self._read is last_hidden
            states = student if plain else last_hidden(self.student, batch.input_ids, batch.attention_mask)
            norms = term_gradient_norms(
                partial(self.objective, batch, states, head, teacher, teacher_head, vocab_size=self.vocab_size),
                self.objective.weights,
                [p for p in self.student.parameters() if p.requires_grad],
            )
            self._log_curves({f"grad_norm/{k}": norm * self.micro_batches for k, norm in norms.items()})
        self.figures.add(batch, terms)
        # Lightning divides by the micro-batches and DDP by the ranks; the denominators are global already
        return (terms.total + terms.clip_penalty) * (self.micro_batches * self.trainer.world_size)

    def _forward(self, batch: Batch) -> tuple[Tensor, Tensor | None, OutputHead, OutputHead | None]:
        teacher_hidden = teacher_head = None
        if self.teacher is not None and self.objective.needs_teacher:
            # no_grad and not inference_mode: backward refuses inference tensors
            with torch.no_grad():
                teacher_head = output_head(self.teacher)
                teacher_hidden = teacher_states(self._read, self.teacher, batch, teacher_head)
        student_hidden = self._read(self.student, batch.input_ids, batch.attention_mask)
        return student_hidden, teacher_hidden, output_head(self.student), teacher_head

    def _wants_rows(self, batch: Batch, first: bool) -> bool:
        steered = isinstance(self.clip, ClipNetwork) and self.clip.objective == "priced"
        logged = first and self.global_step % self.logging.log_every_n_steps == 0
        return self.objective.needs_teacher and (steered or logged or not bool(batch.is_ground_truth.all()))

    def on_before_optimizer_step(self, optimizer: Any) -> None:
        step = self.figures.reduce(self.trainer.strategy if self.trainer.world_size > 1 else None)
        bad = non_finite(step)
        if bad:
            self._leave_out(optimizer, f"{bad} became {step[bad.split(', ')[0]]}")
            return
        self._steer_price(step)
        if self.global_step % self.logging.log_every_n_steps == 0:
            self._log_step(step)

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

    def _log_step(self, step: dict[str, float]) -> None:
        curves = {f"train/{k}": v for k, v in step.items() if k == "loss" or k.startswith("loss_")}
        if self.global_step:
            tokens, seconds = self.figures.tokens * self.trainer.world_size, time.monotonic() - self._clock
            curves["train/tokens_per_second"] = tokens / max(1e-9, seconds)
        if self.figures.slots:
            curves["train/padding"] = 1.0 - self.figures.tokens / self.figures.slots
        self._restart_rate()
        for name in ("retained_mass", "lower", "upper", "teacher_entropy"):
            if step.get("rows") and name in step:
                curves[f"dac/{name}"] = step[name] / step["rows"]
        if isinstance(self.clip, ClipNetwork) and self.clip.objective == "priced":
            curves["dac/price"] = float(self.clip.price)
        self._log_curves(curves)

    def _restart_rate(self) -> None:
        self.figures.restart()
        self._clock = time.monotonic()

    def _log_curves(self, curves: dict[str, Any]) -> None:
        """One point per curve. Left to Lightning, every later step would repeat it until the next one."""
        for name, value in curves.items():
            self.log(name, value, logger=False)
        points = {k: float(v) for k, v in curves.items()}
        # as Lightning keeps them
        self.latest.update({k: float(torch.tensor(v, dtype=torch.float32)) for k, v in points.items()})
        if self.logger is not None:
            self.logger.log_metrics(points, self.global_step)

    def _steer_price(self, step: dict[str, float]) -> None:
        """Within the step, so that a resume point written at its end has it."""
        if isinstance(self.clip, ClipNetwork) and "clipped_min" in step and step.get("rows"):
            rows = step["rows"]
            self.clip.update_price(step["clipped"] / rows, step["clipped_min"] / rows, step["clipped_max"] / rows)

    # -- dev set ----------------------------------------------------------------------------------------

    def on_validation_epoch_start(self) -> None:
        self.student.eval()
        self._dev = torch.zeros(2, dtype=torch.float64, device=self.device)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.check_stop()
        hidden = last_hidden(self.student, batch.input_ids, batch.attention_mask)
        terms = self.objective(
            batch,
            hidden,
            output_head(self.student),
            None,
            None,
            weights=(1.0, 0.0, 0.0),
            vocab_size=self.vocab_size,
        )
        tokens = batch.counts.ground_truth_tokens
        self._dev += torch.tensor([float(terms.sft) * tokens, tokens], dtype=torch.float64, device=self.device)

    def on_validation_epoch_end(self) -> None:
        total = self._dev
        if self.trainer.world_size > 1:
            total = self.trainer.strategy.reduce(total, reduce_op="sum")
        loss = (total[0] / total[1].clamp(min=1)).float()
        self.log("val/loss", loss, rank_zero_only=False)
        self.latest["val/loss"] = float(loss)
        if self.predict is not None:
            predictions, references = self.predict(self.student)
            self.rouge_l.update(predictions, references)
            rouge_l = self.rouge_l.compute().float()
            self.log("val/rouge_l", rouge_l, prog_bar=True)
            self.latest["val/rouge_l"] = float(rouge_l)
            self.rouge_l.reset()
        self.student.train()

    # -- optimisation -----------------------------------------------------------------------------------

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer, scheduler = build_optimizer(
            self.student, self.clip, self.config, clip_lr=self.clip_lr, total_steps=self.total_steps
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def configure_gradient_clipping(self, optimizer: Any, *args: Any, **kwargs: Any) -> None:
        """Student and clip network have norms of their own: one must not shrink the other's step."""
        limit = self.config.grad_clip or float("inf")
        norm = nn.utils.clip_grad_norm_(self.student.parameters(), limit)
        # a scaler of float16 gradients provokes overflows and skips such a step itself
        scaled = getattr(self.trainer.precision_plugin, "scaler", None) is not None
        if not torch.isfinite(norm) and not scaled:
            self._leave_out(optimizer, f"the gradient became {float(norm)}")
            return
        norms = {"train/grad_norm": norm}
        if self.clip is not None:
            norms["train/grad_norm_clip"] = nn.utils.clip_grad_norm_(self.clip.parameters(), limit)
        if self.global_step % self.logging.log_every_n_steps == 0:
            self._log_curves(norms)
