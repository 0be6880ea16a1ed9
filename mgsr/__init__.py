"""mgsr: LLM distillation by Multi-Granularity Semantic Revision (arXiv 2407.10068)."""

__version__ = "0.1.0"

NUMERICS_VERSION = 1
"""Raised by whoever changes a number of a run on purpose, together with the golden run of the tests."""
