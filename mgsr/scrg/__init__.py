"""Sequence correction and re-generation (SCRG): see `revise`."""

from mgsr.scrg.locate import ErrorPosition, locate_error, splice
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
from mgsr.scrg.revise import revise
from mgsr.scrg.search import TeacherToken

__all__ = [
    "Correction",
    "ErrorPosition",
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
    "splice",
]
