from __future__ import annotations

import math

import pytest
import torch

from mgsr.losses import LossTerms, term_counts, tiled_objective
from mgsr.models.clip_network import ClipNetwork
from tests.losses.dense import CLIP, Problem, dense_objective, network

INF = math.inf


def test_micro_batches_add_up_to_one_batch():
    problem, net = Problem(rows=60, seed=1), network(objective="priced")
    problem.spans = torch.where(problem.spans >= 0, torch.arange(60) // 4, -1)
    inputs = [*problem.inputs, *net.parameters()]
    counts = term_counts(problem.labels, problem.spans, problem.truth)
    one = tiled_objective(*problem.arguments, clip=net, sft_mask=problem.truth)
    want = torch.autograd.grad(one.total + one.clip_penalty, inputs)
    sums, grads = torch.zeros(5, dtype=torch.float64), [torch.zeros_like(tensor) for tensor in inputs]
    for part in (slice(0, 20), slice(20, 24), slice(24, 60)):
        rows = [tensor[part] for tensor in (problem.taught, problem.labels, problem.spans, problem.truth)]
        got = tiled_objective(
            problem.hidden[part],
            problem.weight,
            rows[0],
            problem.teacher,
            *rows[1:3],
            clip=net,
            sft_mask=rows[3],
            counts=counts,
        )
        sums += torch.stack([value.detach() for value in got[:5]])
        for total, grad in zip(grads, torch.autograd.grad(got.total + got.clip_penalty, inputs), strict=True):
            total += grad
    torch.testing.assert_close(sums, torch.stack([value.detach() for value in one[:5]]))
    for mine, other in zip(grads, want, strict=True):
        torch.testing.assert_close(mine, other)


def test_a_pair_needs_neighbours_before_masked_rows_are_dropped():
    problem = Problem(rows=6, seed=2)
    problem.labels = torch.tensor([1, -100, 2, 3, 4, 5])
    problem.spans = torch.tensor([0, 0, 0, 0, -1, -1])
    got = tiled_objective(*problem.arguments, clip=CLIP, tile_size=1)
    # rows 0 and 2 become neighbours when row 1 is dropped, but are no pair
    assert term_counts(problem.labels, problem.spans) == (5, 5, 1)
    _, terms, _ = dense_objective(problem, CLIP)
    torch.testing.assert_close(got.span, terms[2].detach())
    masked = problem.labels.clone()
    masked[3] = -100
    arguments = [*problem.arguments[:4], masked, problem.spans]
    assert tiled_objective(*arguments, clip=CLIP).span.item() == 0.0


@pytest.mark.parametrize("case", ["masked", "empty"])
def test_without_any_response_token_all_is_a_differentiable_zero(case):
    problem, net = Problem(rows=0 if case == "empty" else 5), network(objective="priced")
    problem.labels = torch.full_like(problem.labels, -100)
    got = tiled_objective(*problem.arguments, clip=net, collect_rows=True)
    assert [value.item() for value in got[:5]] == [0.0] * 5
    assert got.rows.index.numel() == got.rows.dac_kl.numel() == 0
    grads = torch.autograd.grad(got.total + got.clip_penalty, [*problem.inputs, *net.parameters()])
    assert all(grad.abs().sum() == 0 for grad in grads)
    assert grads[0].shape == problem.hidden.shape


def test_a_zero_count_gives_a_zero_term():
    problem = Problem()
    full = tiled_objective(*problem.arguments, clip=CLIP)
    for index in range(3):
        counts = [10.0, 10.0, 10.0]
        counts[index] = 0
        got = tiled_objective(*problem.arguments, clip=CLIP, counts=counts)
        values = [got.sft.item(), got.dac_kl.item(), got.span.item()]
        assert values[index] == 0.0 and min(v for i, v in enumerate(values) if i != index) > 0
        assert got.total.item() == pytest.approx(sum(values))
    assert full.total.item() == pytest.approx(full.sft.item() + full.dac_kl.item() + full.span.item())
    none = tiled_objective(*problem.arguments, clip=CLIP, sft_mask=torch.zeros(41, dtype=torch.bool))
    assert none.sft.item() == 0.0


def test_given_counts_are_the_denominators():
    problem = Problem()
    own = term_counts(problem.labels, problem.spans)
    got = tiled_objective(*problem.arguments, clip=CLIP, counts=[torch.tensor(2 * count) for count in own])
    want = tiled_objective(*problem.arguments, clip=CLIP)
    torch.testing.assert_close(torch.stack(got[:4]), torch.stack(want[:4]) / 2)


def test_one_weight_at_a_time_gives_the_terms_own_gradients():
    problem = Problem()
    grads = []
    for index in range(3):
        weights = [0.0] * 3
        weights[index] = 1.0
        got = tiled_objective(*problem.arguments, clip=CLIP, weights=weights)
        want, terms, _ = dense_objective(problem, CLIP, weights=weights)
        # the other means are still reported
        torch.testing.assert_close(torch.stack(got[1:4]), torch.stack([term.detach() for term in terms]))
        grads.append(torch.autograd.grad(got.total, problem.inputs))
        for mine, other in zip(grads[-1], torch.autograd.grad(want, problem.inputs), strict=True):
            torch.testing.assert_close(mine, other)
    total = torch.autograd.grad(tiled_objective(*problem.arguments, clip=CLIP).total, problem.inputs)
    for index, grad in enumerate(total):
        torch.testing.assert_close(grad, sum(parts[index] for parts in grads))


def test_supervised_training_needs_no_teacher():
    problem = Problem()
    for spans in (problem.spans, None):
        got = tiled_objective(problem.hidden, problem.weight, None, None, problem.labels, spans, weights=(2, 0, 0))
        want = torch.nn.functional.cross_entropy(problem.hidden @ problem.weight.T, problem.labels)
        torch.testing.assert_close(got.total, 2 * want)
        assert got.dac_kl.item() == got.span.item() == got.clip_penalty.item() == 0.0
        for mine, other in zip(
            torch.autograd.grad(got.total, problem.inputs),
            torch.autograd.grad(2 * want, problem.inputs),
            strict=True,
        ):
            torch.testing.assert_close(mine, other)
    with pytest.raises(ValueError, match="teacher"):
        tiled_objective(problem.hidden, problem.weight, None, None, problem.labels, None, weights=(1, 1, 0))


def test_collected_rows():
    problem, net = Problem(classes=60), network(objective="priced")
    got = tiled_objective(*problem.arguments, clip=net, collect_rows=True, tile_size=9, temperature=2.0).rows
    keep = problem.labels != -100
    student, teacher = problem.hidden @ problem.weight.T, problem.taught @ problem.teacher.T
    lower, upper = net(teacher[keep] / 2, student[keep] / 2)
    p = torch.softmax(teacher[keep] / 2, -1)
    from mgsr.losses import dac_kl

    def clipped(low, high):
        return 1 - dac_kl(teacher[keep], student[keep], low, high, temperature=2.0, sharpness=0.02).retained_mass

    expected = {
        "index": keep.nonzero()[:, 0],
        "lower": lower,
        "upper": upper,
        "retained_mass": 1 - clipped(lower, upper),
        "clipped": clipped(lower, upper),
        "clipped_min": clipped(-0.08, 0.97),
        "clipped_max": clipped(0.3, 0.9),
        "teacher_log_prob": torch.log_softmax(teacher, -1)[keep].gather(1, problem.labels[keep][:, None])[:, 0],
        "teacher_entropy": -(p * p.log()).sum(-1),
        "dac_kl": dac_kl(teacher[keep], student[keep], lower, upper, temperature=2.0, sharpness=0.02).loss,
    }
    for name, want in expected.items():
        value = getattr(got, name)
        assert not value.requires_grad
        torch.testing.assert_close(
            value, want.detach().to(value.dtype), msg=lambda text, name=name: f"{name}: {text}"
        )
    assert (got.clipped_min <= got.clipped + 1e-9).all() and (got.clipped <= got.clipped_max + 1e-9).all()


def test_collected_rows_of_other_divergences_and_fixed_bounds():
    problem = Problem()
    fixed = tiled_objective(*problem.arguments, clip=CLIP, collect_rows=True).rows
    assert (fixed.lower == 0.1).all() and (fixed.upper == 0.8).all() and fixed.clipped_min is None
    other = tiled_objective(*problem.arguments, divergence="reverse_kl", collect_rows=True)
    assert other.rows.lower is None and other.rows.retained_mass is None
    assert other.rows.dac_kl.mean().item() == pytest.approx(other.dac_kl.item())
    assert tiled_objective(*problem.arguments, clip=CLIP).rows is None


def test_a_plain_module_serves_as_clip():
    class Learned(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.bound = torch.nn.Parameter(torch.tensor([0.1, 0.8], dtype=torch.float64))

        def forward(self, teacher_logits, student_logits):
            assert not (teacher_logits.requires_grad or student_logits.requires_grad)
            shape = teacher_logits.shape[:-1]
            return self.bound[0].expand(shape), self.bound[1].expand(shape)

    problem, module = Problem(), Learned()
    got = tiled_objective(*problem.arguments, clip=module, sharpness=0.1, tile_size=7)
    lower, upper = (torch.tensor(b, dtype=torch.float64, requires_grad=True) for b in CLIP)
    want, _, _ = dense_objective(problem, (lower, upper), sharpness=0.1)
    torch.testing.assert_close(got.total, want)
    (mine,) = torch.autograd.grad(got.total, module.bound)
    torch.testing.assert_close(mine, torch.stack(torch.autograd.grad(want, (lower, upper))))


def test_nan_is_reported_not_hidden():
    for index in (0, 2):
        problem = Problem()
        problem.arguments[index].data[:] = math.nan
        got = tiled_objective(*problem.arguments, clip=CLIP)
        assert torch.isnan(got.dac_kl) and torch.isnan(got.total)


def test_the_result_is_a_tuple_that_starts_with_the_five_scalars():
    assert LossTerms._fields[:5] == ("total", "sft", "dac_kl", "span", "clip_penalty")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": None}, "clip must be"),
        ({"clip": (1, 2, 3)}, "3 values"),
        ({"weights": (1, 1)}, "weights"),
        ({"counts": (1, 1)}, "counts"),
        ({"tile_size": 0}, "tile_size"),
        ({"divergence": "kl"}, "'kl'"),
        ({"target": "top"}, "'top'"),
        ({"ramp": "step"}, "'step'"),
        ({"span_norm": "l1"}, "'l1'"),
        ({"temperature": 0.0}, "temperature"),
        ({"vocab_size": 99}, "99"),
        ({"vocab_size": 5}, "label"),
        ({"student_softcap": 0.0}, "softcap"),
        ({"sft_mask": torch.ones(3, dtype=torch.bool)}, "sft_mask has 3 rows, labels 41"),
        ({"clip": ClipNetwork(sharpness=0.02), "sharpness": 0.01}, "sharpness"),
    ],
)
def test_wrong_arguments_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        tiled_objective(*Problem().arguments, **{"clip": CLIP, **options})
