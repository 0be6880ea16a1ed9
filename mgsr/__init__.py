"""mgsr: LLM distillation by Multi-Granularity Semantic Revision (arXiv 2407.10068).

Thirteen folders, imports going down only: `cli`, `study`, `planning`, `training`, `rounds`, `evaluation`,
`generation`, `models`, `data`, `scrg`, `losses`, `config`, `runtime`. Each says in its `__init__` what lives
there, what never does, and where to begin.

For use in code of one's own: `mgsr.losses` (tensors in, losses out), `mgsr.scrg` (any two models that meet its
protocols), `mgsr.config.load_config` and `mgsr.training.train.train`. Begin reading with `training/train.py`.
"""

__version__ = "0.1.0"

NUMERICS_VERSION = 3
"""Raised by whoever changes a number of a run on purpose, together with the golden run of the tests."""
