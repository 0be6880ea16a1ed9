"""MiniLLM's objective on batches and models, as the module calls it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import pytest
import torch
from torch import Tensor
from transformers import LlamaConfig, LlamaForCausalLM

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig, TrainConfig, TrainerConfig
from mgsr.data.collate import Batch, StepCounts, TrainingSequence, collate
from mgsr.generation.language_model import LanguageModel
from mgsr.generation.two_models import MixedWriter
from mgsr.losses import LossTerms, MiniLLMObjective, Objective
from mgsr.models.clip_network import ClipNetwork
from mgsr.models.output_layer import last_hidden, output_head
from mgsr.runtime.errors import ConfigError
from mgsr.training.build import build_clip, build_minillm, build_objective
from mgsr.training.module import DistillationModule
from mgsr.training.run_folder import run_folder
from mgsr.training.train import train
from tests.reading import resume_content

EOS = 2  # the padding id as well
VOCABULARY = 20
MINILLM = ("objective.kind=minillm", "objective.w_span=0", "scrg.enabled=true", "scrg.text=mixed")
MODELS = ("teacher.source=t", "student.source=s", "data.train=synthetic")


def tiny(seed: int, hidden: int = 8, vocabulary: int = VOCABULARY) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=2 * hidden,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=EOS,
        eos_token_id=EOS,
        initializer_range=0.5,
    )
    return LlamaForCausalLM(config).double().eval()


STUDENT, TEACHER = tiny(0), tiny(1, hidden=12, vocabulary=VOCABULARY + 4).requires_grad_(False)


def written(prompt: Sequence[int], response: Sequence[int], behaviour: Sequence[float]) -> TrainingSequence:
    """A model-written sequence; its end-of-sequence token, if any, is the padding id."""
    spans = tuple(-1 for _ in response)
    return TrainingSequence(5, tuple(prompt), tuple(response), spans, False, tuple(behaviour))


ROWS = [
    written((4, 5, 6), (7, 8, EOS), (-1.0, -3.0, -2.0)),
    TrainingSequence(6, (4, 9), (10, 11, 12, 13, EOS), (-1,) * 5, True),
    written((14,), (15, 16, 17, 18, 19, EOS), (-2.0, -3.5, -0.5, -3.0, -2.5, -4.0)),
    written((4, 4), (EOS,), (-3.0,)),
    TrainingSequence(8, (4, 9, 9, 9), (EOS,), (-1,), True),
]


def objective(
    w_sft: float = 1.0, w_policy: float = 1.0, clip: float = 0.2, tile: int | None = 3
) -> MiniLLMObjective:
    return MiniLLMObjective((w_sft, w_policy, 0.0), None, {"importance_clip": clip, "tile_size": tile})


def evaluate(
    loss: MiniLLMObjective, batch: Batch, *, weights: tuple[float, float, float] | None = None, rows: bool = False
) -> LossTerms:
    hidden = [last_hidden(model, batch.input_ids) for model in (STUDENT, TEACHER)]
    heads = [output_head(model) for model in (STUDENT, TEACHER)]
    return loss(
        batch.targets,
        hidden[0],
        heads[0],
        hidden[1],
        heads[1],
        weights=weights,
        vocab_size=VOCABULARY,
        collect_rows=rows,
    )


def gradient(terms: LossTerms) -> Tensor:
    grads = torch.autograd.grad(terms.total, list(STUDENT.parameters()))
    return torch.cat([grad.flatten() for grad in grads])


def by_autograd(rows: Sequence[TrainingSequence], clip: float) -> tuple[Tensor, Tensor]:
    """Sums of cross-entropy and policy objective, one unpadded sequence at a time, from whole logits."""
    sft, policy = torch.zeros(()).double(), torch.zeros(()).double()
    for row in rows:
        ids = torch.tensor([row.prompt_ids + row.response_ids])
        length = len(row.response_ids)
        log_q, log_p = (
            torch.log_softmax(model(input_ids=ids).logits[0, -length - 1 : -1, :VOCABULARY], -1)
            for model in (STUDENT, TEACHER)
        )
        steps, tokens = range(length), list(row.response_ids)
        own = log_q[steps, tokens]
        if row.is_ground_truth:
            sft = sft - own.sum()
            continue
        reward = (log_p[steps, tokens] - own).detach()
        ratio = (own - torch.tensor(row.behaviour_log_probs)).exp()
        for t in steps:
            follows = reward[t + 1 :]
            advantage = follows.mean() if t + 1 < length else torch.zeros(()).double()
            policy = policy + ratio[t].detach() * (log_q[t].exp() * (log_q[t] - log_p[t])).sum()
            clipped = ratio[t].clamp(1 - clip, 1 + clip)
            policy = policy + torch.maximum(-ratio[t] * advantage, -clipped * advantage)
    return sft, policy


# -- values and gradients -----------------------------------------------------------------------------------


@pytest.mark.parametrize("clip", [0.2, math.inf])
def test_batch_equals_its_sequences_one_by_one(clip: float) -> None:
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    terms = evaluate(objective(0.5, 2.0, clip), batch)
    sft, policy = by_autograd(ROWS, clip)
    # six ground-truth tokens, ten model-written: end-of-sequence tokens count, the padding of the same id doesn't
    expected = 0.5 * sft / 6 + 2.0 * policy / 10
    torch.testing.assert_close(terms.total, expected)
    torch.testing.assert_close(terms.sft, sft.detach() / 6)
    torch.testing.assert_close(terms.dac_kl, policy.detach() / 10)
    whole = torch.autograd.grad(expected, list(STUDENT.parameters()))
    torch.testing.assert_close(gradient(terms), torch.cat([grad.flatten() for grad in whole]))


@pytest.mark.parametrize("parts", [[(0, 1), (2, 3, 4)], [(4,), (3,), (2,), (1,), (0,)], [(1, 4), (0, 2, 3)]])
def test_micro_batches_add_up_to_the_batch(parts: list[tuple[int, ...]]) -> None:
    counts = StepCounts.of(ROWS)
    whole = evaluate(objective(), collate(ROWS, counts, EOS))
    split = [evaluate(objective(), collate([ROWS[i] for i in part], counts, EOS)) for part in parts]
    for name in ("total", "sft", "dac_kl"):
        torch.testing.assert_close(sum(getattr(terms, name) for terms in split), getattr(whole, name))
    torch.testing.assert_close(sum(gradient(terms) for terms in split), gradient(whole))


def test_single_terms_add_up_to_the_total() -> None:
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    loss = objective(0.5, 2.0)
    alone = [evaluate(loss, batch, weights=weights) for weights in ((0.5, 0.0, 0.0), (0.0, 2.0, 0.0))]
    whole = evaluate(loss, batch)
    torch.testing.assert_close(alone[0].total + alone[1].total, whole.total)
    torch.testing.assert_close(gradient(alone[0]) + gradient(alone[1]), gradient(whole))


def test_tiles_are_chosen_where_none_are_given() -> None:
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    whole, tiled = (evaluate(objective(tile=tile), batch) for tile in (None, 1))
    torch.testing.assert_close(gradient(tiled), gradient(whole))


def test_rows_point_to_the_tokens_that_states_predict() -> None:
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    rows = evaluate(objective(), batch, rows=True).rows
    assert rows is not None
    width = batch.input_ids.shape[1] - 1
    places = [(int(i) // width, int(i) % width + 1) for i in rows.index]
    assert places == [(0, 3), (0, 4), (0, 5), (2, 1), (2, 2), (2, 3), (2, 4), (2, 5), (2, 6), (3, 2)]
    logits = TEACHER(input_ids=batch.input_ids).logits[..., :VOCABULARY]
    log_p = torch.log_softmax(logits, -1)
    expected = torch.stack([log_p[b, t - 1, batch.input_ids[b, t]] for b, t in places])
    torch.testing.assert_close(rows.teacher_log_prob, expected)


def test_mixed_text_of_the_student_has_weights_below_one_over_the_students_share() -> None:
    """Text, log-probabilities and loss fit together: rho = q / p~ <= 1 / (1 - alpha), and 1 for alpha = 0."""
    prompts = [(i, (4 + i, 5, 6)) for i in range(6)]
    for alpha in (0.0, 0.4):
        models = [
            LanguageModel(
                model,
                eos_token_id=EOS,
                pad_token_id=EOS,
                max_new_tokens=8,
                batch_size=4,
                vocab_size=VOCABULARY,
            )
            for model in (STUDENT, TEACHER)
        ]
        texts = MixedWriter(*models, alpha=alpha).write_mixed(prompts, seed=0, round=0)
        rows = [
            written(prompt, text.response_ids, text.behaviour_log_probs)
            for (_, prompt), text in zip(prompts, texts, strict=True)
        ]
        batch = collate(rows, StepCounts.of(rows), EOS)
        assert batch.behaviour_log_probs is not None
        logits = STUDENT(input_ids=batch.input_ids).logits
        response = batch.labels[:, 1:] >= 0
        own = torch.log_softmax(logits, -1)[:, :-1].gather(-1, batch.input_ids[:, 1:, None])[..., 0]
        ratio = (own - batch.behaviour_log_probs[:, 1:]).exp()[response]
        assert ratio.max().item() <= (1 + 1e-5) / (1 - alpha)
        # at alpha 0 nothing is clipped however narrow the range
        narrow, plain = (gradient(evaluate(objective(clip=clip), batch)) for clip in (1e-4, math.inf))
        same = torch.allclose(narrow, plain)
        assert same if alpha == 0 else not same
        assert bool((ratio < 0.8).any()) == (alpha > 0)


# -- the interface that the module relies on ----------------------------------------------------------------


def config_of(*overrides: str) -> ExperimentConfig:
    return load_config(None, [*MODELS, *MINILLM, *overrides])


def test_build_objective_chooses_by_kind() -> None:
    config = config_of("objective.importance_clip=0.3", "objective.w_sft=0.5", "objective.tile_size=7")
    loss = build_objective(config, build_clip(config, VOCABULARY, None))
    assert isinstance(loss, MiniLLMObjective)
    assert loss.weights == (0.5, 1.0, 0.0) and loss.needs_teacher
    assert loss.options == {"importance_clip": 0.3, "tile_size": 7, "product_dtype": None}
    # whatever the clip section says, no clip network is built
    assert build_clip(config, VOCABULARY, None) is None
    assert loss.clip_network is None
    plain = load_config(None, [*MODELS])
    other = build_objective(plain, build_clip(plain, VOCABULARY, None))
    assert type(other) is Objective and isinstance(other.clip_network, ClipNetwork)


def test_the_configured_clip_reaches_the_loss() -> None:
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    for clip in (0.1, 0.5):
        configured = build_minillm(config_of(f"objective.importance_clip={clip}"))
        torch.testing.assert_close(evaluate(configured, batch).total, evaluate(objective(clip=clip), batch).total)
    assert not torch.isclose(*(evaluate(objective(clip=clip), batch).total for clip in (0.1, 0.5)))


def test_without_policy_weight_no_teacher_is_needed() -> None:
    loss = objective(1.0, 0.0)
    assert not loss.needs_teacher
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    terms = loss(batch.targets, last_hidden(STUDENT, batch.input_ids), output_head(STUDENT), None, None)
    torch.testing.assert_close(terms.total, by_autograd(ROWS, 0.2)[0] / 6)


def test_module_trains_and_measures_dev_loss_through_it() -> None:
    module = DistillationModule(
        tiny(3),
        TEACHER,
        objective(),
        train=TrainConfig(),
        trainer=TrainerConfig(),
        total_steps=1,
        micro_batches=1,
        vocab_size=VOCABULARY,
    )
    assert module.clip is None
    truth = [row for row in ROWS if row.is_ground_truth]
    batch = collate(truth, StepCounts.of(truth), EOS)
    module.on_validation_epoch_start()
    module.validation_step(batch, 0)
    logits = torch.log_softmax(module.student(input_ids=batch.input_ids).logits, -1)
    own = logits[:, :-1].gather(-1, batch.input_ids[:, 1:, None])[..., 0]
    expected = -own[batch.labels[:, 1:] >= 0].sum()
    torch.testing.assert_close(module._dev, torch.stack([expected.detach(), torch.tensor(6.0).double()]))


def test_whole_run_on_mixed_text(make_config: Callable[..., ExperimentConfig]) -> None:
    config = make_config(*MINILLM, "train.epochs=2", "train.micro_batch_size=4")
    metrics = train(config)
    assert metrics["scrg"]["rounds"] == 2 and math.isfinite(metrics["val"]["loss"])
    state = resume_content(run_folder(config))["state_dict"]
    assert state and not any("clip" in name for name in state)


# -- refusals -----------------------------------------------------------------------------------------------


def test_a_span_term_is_refused() -> None:
    with pytest.raises(ValueError, match="span"):
        MiniLLMObjective((1.0, 1.0, 0.5), None, {})
    with pytest.raises(ValueError, match="clip"):
        MiniLLMObjective((1.0, 1.0, 0.0), (0.0, 1.0), {})
    batch = collate(ROWS, StepCounts.of(ROWS), EOS)
    with pytest.raises(ValueError, match="span"):
        evaluate(objective(), batch, weights=(0.0, 0.0, 1.0))


def test_a_configuration_of_what_it_does_not_have_is_refused() -> None:
    for name, value in (("w_span", 1.0), ("temperature", 2.0)):
        with pytest.raises(ConfigError, match=rf"objective\.{name}="):
            config_of(f"objective.{name}={value}")


def test_model_text_without_its_log_probabilities_is_refused() -> None:
    rows = [TrainingSequence(5, (4, 5), (6, EOS), (-1, -1), False)]
    with pytest.raises(ValueError, match="behaviour_log_probs"):
        evaluate(objective(), collate(rows, StepCounts.of(rows), EOS))
