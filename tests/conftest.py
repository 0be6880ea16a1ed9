"""A configuration small enough to run whole, many times, and what makes the suite fast."""

from __future__ import annotations

import gc
import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from tensorboard.summary.writer import event_file_writer

from mgsr.config.load import load_config
from mgsr.config.schema import ExperimentConfig

TINY = """
experiment: tiny
arm: mgsr
data:
  train: synthetic
  template: plain
  max_length: 96
  max_prompt_length: 64
  synthetic: {teacher_rows: 48, train_rows: 32, dev_rows: 6, test_rows: 6, vocab_size: 300}
teacher:
  source: init
  architecture: {family: llama, hidden_size: 16, num_layers: 2, num_heads: 2, intermediate_size: 32}
  sft: {enabled: true, max_steps: 6, batch_size: 16, micro_batch_size: 16, lr: 1.0e-2, seed: 0}
student:
  source: init
  architecture: {family: llama, hidden_size: 8, num_layers: 1, num_heads: 2, intermediate_size: 16}
  sft: {enabled: true, max_steps: 4, batch_size: 16, micro_batch_size: 16, lr: 1.0e-2}
scrg: {max_new_tokens: 6, batch_size: 16}
train: {epochs: 3, batch_size: 8, micro_batch_size: 8, lr: 1.0e-2}
evaluation: {seeds: [10, 20], batch_size: 16, max_new_tokens: 6}
trainer: {accelerator: cpu, checkpoint_every_n_steps: 100, log_every_n_steps: 1, grad_norm_every_n_steps: 4,
          histogram_every_n_steps: 4}
"""

Make = Callable[..., ExperimentConfig]

# TensorBoard reads event files of one second by name, and 10 stands before 9: in one process with many runs the
# curves of a resumed one would be read in the wrong order
event_file_writer._global_uid = event_file_writer.AtomicCounter(1000)


@pytest.fixture(scope="session", autouse=True)
def quick_suite() -> Iterator[None]:
    """What was imported is not looked through whenever garbage is collected; files need outlive no power cut."""
    gc.collect()
    gc.freeze()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(scope="session")
def tiny_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("configs") / "tiny.yaml"
    path.write_text(TINY)
    return path


@pytest.fixture(scope="session")
def shared_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run root whose cache of teacher and SFT student all tests share, in other workers too: it has locks."""
    root, base = tmp_path_factory.mktemp("runs"), tmp_path_factory.getbasetemp()
    # pytest-xdist gives every worker a folder of its own within that of the session
    cache = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "cache"
    cache.mkdir(exist_ok=True)
    (root / "cache").symlink_to(cache)
    return root


@pytest.fixture
def make_config(tiny_file: Path, shared_root: Path, request: pytest.FixtureRequest) -> Make:
    """The tiny configuration with overrides, in an experiment of the test's own."""

    def make(*overrides: str) -> ExperimentConfig:
        name = request.node.name.replace("/", "_").replace("[", "_").replace("]", "")
        return load_config(tiny_file, [f"run_root={shared_root}", f"experiment={name}", *overrides])

    return make
