"""Whether this process is one of several of a job; the one place where launchers are looked at."""

from __future__ import annotations

import os

import torch

# (how many processes the job has, what they have in common), by launcher
_LAUNCHERS = (
    ("WORLD_SIZE", ("MASTER_ADDR", "MASTER_PORT", "TORCHELASTIC_RUN_ID")),  # torchrun, and whoever imitates it
    ("OMPI_COMM_WORLD_SIZE", ("OMPI_MCA_ess_base_jobid", "PMIX_NAMESPACE")),
    ("SLURM_NTASKS", ("SLURM_JOB_ID", "SLURM_STEP_ID")),
)


def detect_job() -> str | None:
    """Name what the processes of this job on this machine have in common; None for a process on its own."""
    for size, marks in _LAUNCHERS:
        values = [os.environ.get(mark, "") for mark in marks]
        # An interactive Slurm shell counts its tasks too, but only a step started by srun has a number of its own.
        if any(values) and os.environ.get(size, "").isdecimal() and int(os.environ[size]) > 1:
            return f"{size} {' '.join(values)}"
    distributed = torch.distributed
    if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
        # Started by hand or by torch.multiprocessing.spawn: what they share for certain is their parent.
        return f"parent {os.getppid()}"
    return None
