"""Who started this process among others: torchrun (`mgsr train` uses its agent itself), srun, or nobody.

Lightning numbers a process by single variables, when it is imported. One that another job left in the shell would
make a lone process the fourth of nobody knows how many, which writes no curves.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, MutableMapping

_TORCHRUN = ("RANK", "LOCAL_RANK", "WORLD_SIZE")
_SRUN = ("SLURM_PROCID", "SLURM_LOCALID", "SLURM_NTASKS")
# what Lightning reads besides
_OTHERS = ("JSM_NAMESPACE_RANK", "GROUP_RANK", "NODE_RANK")


def by_torchrun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether torch's elastic agent started this process: all it says of a rank is there, and agrees.

    >>> by_torchrun({"RANK": "3"})
    False
    """
    needed = ("TORCHELASTIC_RUN_ID", "MASTER_ADDR", "MASTER_PORT")
    return all(environ.get(name) for name in needed) and _is_a_rank(environ, *_TORCHRUN)


def by_srun(environ: Mapping[str, str] = os.environ) -> bool:
    """Whether this process is a task of a SLURM job: srun's, or the one task that a batch script is.

    In a script of several tasks that srun has not started, the others do not exist.
    """
    if "SLURM_JOB_ID" not in environ or not _is_a_rank(environ, *_SRUN):
        return False
    return environ["SLURM_NTASKS"] == "1" or "SLURM_STEP_ID" in environ or "SLURM_STEPID" in environ


def forget_strangers(environ: MutableMapping[str, str] = os.environ) -> list[str]:
    """Remove the rank variables of launchers that did not start this process.

    Returns:
        Those that would have changed something, as `RANK=3`.

    >>> forget_strangers({"RANK": "3", "LOCAL_RANK": "0", "HOME": "/"})
    ['RANK=3']
    """
    strange = [] if by_torchrun(environ) else [*_TORCHRUN, "TORCHELASTIC_RUN_ID", *_OTHERS]
    # the number of tasks stays: it is the job's
    strange += [] if by_srun(environ) else _SRUN[:2]
    found = {name: environ.pop(name) for name in strange if name in environ}
    harmless = {"WORLD_SIZE": "1", "TORCHELASTIC_RUN_ID": found.get("TORCHELASTIC_RUN_ID")}
    return [f"{name}={value}" for name, value in found.items() if value != harmless.get(name, "0")]


def _is_a_rank(environ: Mapping[str, str], rank: str, local: str, world: str) -> bool:
    try:
        return 0 <= int(environ[local]) <= int(environ[rank]) < int(environ[world])
    except (KeyError, ValueError):
        return False
