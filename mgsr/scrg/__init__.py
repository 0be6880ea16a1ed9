"""Sequence correction and re-generation (SCRG): the student writes, the teacher mends a token, and so on.

Here is the method alone, on protocols (`Student`, `Scorer`) that any pair of models can meet: `locate` has the
rule for the error position (Liu et al. 2024, eq. 3), `search` applies it to a batch of responses, `revise` is the
loop over passes (eq. 4), `records` are what goes in and out. Tensors and token ids only: no files, no
configuration, no Lightning and no model of transformers. Models that write are in `mgsr.generation`; who asks them
during a run is in `mgsr.rounds`.

Begin with `revise.revise_batch`.
"""

from mgsr.scrg.locate import ErrorPosition, locate_error
from mgsr.scrg.records import (
    Correction,
    Prefix,
    Prompt,
    RevisedSequence,
    Scorer,
    Student,
    TokenLogits,
    Writer,
)
from mgsr.scrg.revise import revise, revise_batch, splice
from mgsr.scrg.search import Options, TeacherToken

__all__ = [
    "Correction",
    "ErrorPosition",
    "Options",
    "Prefix",
    "Prompt",
    "RevisedSequence",
    "Scorer",
    "Student",
    "TeacherToken",
    "TokenLogits",
    "Writer",
    "locate_error",
    "revise",
    "revise_batch",
    "splice",
]
