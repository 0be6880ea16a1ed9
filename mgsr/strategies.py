"""Configuration -> Lightning strategy."""

from __future__ import annotations

from datetime import timedelta

from lightning.pytorch.strategies import DDPStrategy, Strategy

from mgsr.schema import TrainerConfig

# a rank may wait for another that writes a long round of text
GENERATION_TIMEOUT = timedelta(hours=4)


def build_strategy(config: TrainerConfig) -> str | Strategy:
    """`auto` on one device; DistributedDataParallel on several, or where it is asked for."""
    if config.strategy == "ddp" or config.devices * config.num_nodes > 1:
        return DDPStrategy(find_unused_parameters=False, timeout=GENERATION_TIMEOUT)
    return "auto"
