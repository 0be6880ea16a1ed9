"""Whether Triton's kernels of `row_kernels` work on this machine: they are tried once before they are used."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor

from mgsr.runtime.progress import say_once

TOLERANCE = 1e-4


def kernels_do(device: torch.device, dtype: torch.dtype) -> bool:
    """Whether rows of this type on this device are worked on by the kernels."""
    return device.type == "cuda" and dtype == torch.float32 and kernels_work(device)


@cache
def kernels_work(device: torch.device) -> bool:
    """Whether the kernels can be compiled there, and compute what PyTorch's operations do."""
    try:
        differs = differences(device)
    except Exception as error:  # whatever a compiler, a driver or a missing package says
        reason = str(error).strip().splitlines()
        differs = [f"{type(error).__name__}: {reason[0] if reason else ''}"]
    if differs:
        say_once(
            f"the objective's Triton kernels do not work on {device} ({', '.join(differs)}): "
            "PyTorch's own operations do their work, which takes longer"
        )
    return not differs


def differences(device: torch.device, width: int = 5003, depth: int = 40) -> list[str]:
    """What the kernels find otherwise than plain operations do, on a few rows with ties and ruled out classes."""
    from mgsr.losses import row_kernels as kernels

    generator = torch.Generator().manual_seed(0)
    taught, own = (2 * torch.randn(6, width, generator=generator) for _ in range(2))
    taught[1, 7 : width // 2], taught[2] = -3.0, taught[2].round()
    # more than one block of them
    own[3, : width * 5 // 6], taught[4, 11] = -torch.inf, -torch.inf
    taught, own = taught.to(device), own.to(device)
    log_p, log_q = (torch.log_softmax(logits.double(), dim=-1) for logits in (taught, own))
    p, q = log_p.exp(), log_q.exp()
    sides = [kernels.softmax_sums(logits) for logits in (taught, own)]
    found: dict[str, tuple[Tensor, Tensor]] = {}
    for name, (_, log_prob, entropy), logs, probs in (
        ("teacher", sides[0], log_p, p),
        ("student", sides[1], log_q, q),
    ):
        found[f"{name}'s softmax"] = log_prob, logs.amax(dim=-1)
        found[f"{name}'s entropy"] = entropy, -(probs * logs.clamp_min(-1e4)).sum(dim=-1)
    ids = taught.sort(dim=-1, descending=True, stable=True).indices[:, :depth]
    values = taught.gather(1, ids)
    above = (values > values[:, -1:]).sum(dim=-1)
    mended = torch.where(torch.arange(depth, device=device) < above.unsqueeze(1), ids, 0)
    kernels.first_equal(taught, values[:, -1], above, mended)
    found["ranking"] = mended, ids
    factor = torch.tensor([-0.3, -0.3, 0.0, 0.0, -0.3, 0.0], device=device)
    last, apart = ids[:, -1].contiguous(), torch.full_like(above, -1)
    apart[3], last[5] = width - 1, -1
    inside = torch.zeros_like(p, dtype=torch.bool).scatter_(1, ids, True)
    inside[3, width - 1], inside[5] = True, True
    models = taught, *sides[0][:2], own, *sides[1][:2]
    d = p[:-1] * p[1:] - q[:-1] * q[1:]
    d[factor[:-1] == 0] = 0.0
    wanted = [(~inside * p).sum(-1), (~inside * q).sum(-1), d.square().sum(-1), (d * q[:-1] * q[1:]).sum(-1)]
    for name, mine, want in zip(
        ("teacher's masses", "student's masses", "span sums", "span products"),
        kernels.row_sums(models, factor, last, apart),
        wanted,
        strict=True,
    ):
        found[name] = mine[: len(want)], want
    scales = torch.linspace(-1.0, 2.0, 12, device=device).view(2, 6)
    label, weight = torch.arange(5, device=device) * 3, torch.linspace(0.0, 0.4, 5, device=device)
    added = torch.linspace(-0.1, 0.1, 5 * depth, device=device).view(5, depth)
    g = torch.zeros_like(q)
    g[:-1] += factor[:-1, None] * d * q[1:]
    g[1:] += factor[:-1, None] * d * q[:-1]
    gradient = q * (g + torch.where(inside, scales[0, :, None], scales[1, :, None]))
    gradient[:5].scatter_add_(1, label.unsqueeze(1), -weight.double().unsqueeze(1))
    gradient[:5].scatter_add_(1, ids[:5], added.double())
    # it takes the logits' place
    chosen = ids[:5].contiguous(), added
    halo = kernels.row_gradient(models, factor, scales, torch.stack([last, apart]), label, weight, own[:5], chosen)
    assert halo is not None
    found["gradient"], found["gradient behind"] = (own[:5], gradient[:5]), (halo, gradient[5:])
    return [name for name, (mine, want) in found.items() if not _close(mine, want)]


def _close(mine: Tensor, want: Tensor) -> bool:
    error = (mine.double() - want.double()).abs().amax()
    return bool(error <= TOLERANCE * want.double().abs().amax())
