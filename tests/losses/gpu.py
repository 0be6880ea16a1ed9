"""The ways that the objective takes on a GPU, on a machine without one."""

from __future__ import annotations

import contextlib

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from mgsr.losses import ranking, tiled_objective
from mgsr.losses.fused import selection
from mgsr.losses.reduction import AnswerRows
from tests.host_reads import HostReads, as_on_a_gpu

PRODUCTS = ("mm", "addmm", "addmm_")
FREE = ("empty", "empty_like", "new_empty", "empty_strided", "detach")


def shallow_gpu(monkeypatch, depth=64):
    """A GPU whose selection is a few dozen classes."""
    as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(ranking, "SORT_WIDTH", 20)
    monkeypatch.setattr(selection, "ONLY_DEPTH", depth)


def answers_of(problem, sft_mask=None):
    """What the maker of a batch knows of its rows."""
    place = (problem.labels != -100).nonzero().squeeze(1)
    truth = torch.ones_like(place, dtype=torch.bool) if sft_mask is None else sft_mask[place]
    spans, following = problem.spans[place], torch.zeros(len(place), dtype=torch.bool)
    following[:-1] = (spans[:-1] == spans[1:]) & (spans[1:] >= 0) & (place[1:] == place[:-1] + 1)
    labels = problem.labels[place]
    return AnswerRows(
        place,
        labels,
        truth,
        place[truth],
        place[~truth],
        following,
        tuple(following.tolist()),
        (int(labels.min()), int(labels.max())),
    )


def results(problem, parameters=(), *, backward=True, **options):
    """Terms, per-row values and gradients by name."""
    terms = tiled_objective(*problem.arguments, **options)
    found = {name: getattr(terms, name).detach() for name in ("total", "sft", "dac_kl", "span", "clip_penalty")}
    if terms.rows is not None:
        columns = vars(terms.rows).items()
        found |= {f"row {name}": value for name, value in columns if value is not None}
    if backward:
        grads = torch.autograd.grad(terms.total + terms.clip_penalty, [*problem.inputs, *parameters])
        found |= {f"gradient {place}": grad for place, grad in enumerate(grads)}
    return found


def reads_of(problem, **options):
    """Names of the reads of one call, and of its backward."""
    reads = HostReads()
    with reads:
        terms = tiled_objective(*problem.arguments, **options)
        (terms.total + terms.clip_penalty).backward()
    return reads.found


class Passes(TorchDispatchMode):
    """Counts the operations that touch a tensor as large as a tile, products of matrices and views aside."""

    def __init__(self, elements):
        super().__init__()
        self.elements, self.found, self._paused = elements, [], False

    @contextlib.contextmanager
    def paused(self):
        self._paused = True
        yield
        self._paused = False

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.rpartition("::")[2]
        views = any(r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns)
        if not self._paused and not views and name not in (*PRODUCTS, *FREE):
            # of what only lends its type nothing is read
            touched = out if name.startswith("new_") else (args, kwargs, out)
            sizes = [t.numel() for t in tree_leaves(touched) if isinstance(t, torch.Tensor)]
            if max(sizes, default=0) >= self.elements:
                self.found.append(name)
        return out
