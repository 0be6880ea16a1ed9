"""mgsr: LLM distillation by Multi-Granularity Semantic Revision (arXiv 2407.10068)."""

__version__ = "0.1.0"
