"""Who am I, and where do the ranks meet: from whatever launcher started this process."""

from __future__ import annotations

import os
import re
import socket
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multihost.errors import UserError

LAUNCHER_VARIABLE = "MULTIHOST_LAUNCHER"  # set by our own launchers, for the record
_DEFAULT_PORT = 29500
# Where a port is derived from a job's id: above the well-known ones, below those that Linux gives
# to outgoing connections.
_FIRST_PORT, _PORTS = 20_000, 12_000

_NO_LAUNCHER = (
    "No launcher's variables found: start this with torchrun, mpirun or srun, or alone with "
    "--local N."
)
_NO_ADDRESS = (
    "{launcher} says that the ranks are on several hosts but not where rank 0 is: install mpi4py "
    "on all of them, or set MASTER_ADDR to rank 0's address."
)


@dataclass(frozen=True)
class Place:
    """This process among all, and where rank 0 listens."""

    rank: int
    world: int
    local_rank: int
    local_world: int
    address: str
    port: int
    launcher: str
    server_elsewhere: bool = False  # torchrun's agent holds the store


def find_place(environ: Mapping[str, str] = os.environ) -> Place:
    """Read the launcher's variables; torchrun's first, then Open MPI's, Slurm's, PMI's.

    Slurm's are those of mpirun's helpers, one on each host, where MPICH's or Intel's mpirun runs
    inside of it: then PMI counts other ranks than Slurm does.

    Under an MPI launcher with mpi4py installed, MPI itself says the rank and spreads the address.
    ``MASTER_ADDR`` and ``MASTER_PORT`` override what would be derived.

    Raises:
        UserError: no launcher, or variables that are not enough.
    """
    if {"RANK", "WORLD_SIZE", "MASTER_ADDR"} <= environ.keys():
        return _from_torch(environ)
    if "OMPI_COMM_WORLD_RANK" in environ:
        return _from_mpi4py(environ, "mpirun") or _from_open_mpi(environ)
    of_pmi = {"PMI_RANK", "PMI_SIZE"} <= environ.keys()
    of_slurm = {"SLURM_PROCID", "SLURM_STEP_ID"} <= environ.keys()  # no step: a batch script
    if of_slurm and not (of_pmi and environ["PMI_SIZE"] != environ.get(_slurm_tasks(environ))):
        return _from_slurm(environ)
    if of_pmi:
        return _from_mpi4py(environ, "mpirun") or _from_pmi(environ)
    raise UserError(_NO_LAUNCHER)


def first_host(nodelist: str) -> str:
    """``"gpu[03-05,9],cpu1"`` -> ``"gpu03"``: the first of Slurm's compressed list."""
    match = re.match(r"([^\[,]+)(?:\[([^\],-]+)[^\]]*\])?", nodelist)
    if match is None:
        raise UserError(f"Slurm's list of hosts is not understood: {nodelist!r}; set MASTER_ADDR.")
    return match[1] + (match[2] or "")


def free_port(address: str = "") -> int:
    with socket.create_server((address, 0)) as server:
        return int(server.getsockname()[1])


def _from_torch(environ: Mapping[str, str]) -> Place:
    elastic = "TORCHELASTIC_RUN_ID" in environ
    rank, world = _rank_of(environ, "RANK", "WORLD_SIZE")
    return Place(
        rank,
        world,
        _number(environ, "LOCAL_RANK", 0),
        _number(environ, "LOCAL_WORLD_SIZE", 1, least=1),
        environ["MASTER_ADDR"],
        _port(environ, _DEFAULT_PORT),
        environ.get(LAUNCHER_VARIABLE) or ("torchrun" if elastic else "env"),
        server_elsewhere=environ.get("TORCHELASTIC_USE_AGENT_STORE") == "True",
    )


def _from_open_mpi(environ: Mapping[str, str]) -> Place:
    rank, world = _rank_of(environ, "OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE")
    local_rank, local_world = _rank_of(
        environ, "OMPI_COMM_WORLD_LOCAL_RANK", "OMPI_COMM_WORLD_LOCAL_SIZE"
    )
    job = environ.get("PMIX_NAMESPACE") or environ.get("OMPI_MCA_ess_base_jobid", "")
    address = _address(environ, world == local_world, "mpirun")
    port = _port(environ, _port_of(job))
    return Place(rank, world, local_rank, local_world, address, port, "mpirun, variables only")


def _from_pmi(environ: Mapping[str, str]) -> Place:
    rank, world = _rank_of(environ, "PMI_RANK", "PMI_SIZE")
    local_rank = _number(environ, "MPI_LOCALRANKID", rank)
    local_world = _number(environ, "MPI_LOCALNRANKS", world, least=1)
    one_host = "MPI_LOCALNRANKS" in environ and world == local_world
    address = _address(environ, one_host, "mpirun")
    port = _port(environ, _port_of(environ.get("PMI_JOBID", "")))
    return Place(rank, world, local_rank, local_world, address, port, "mpirun, variables only")


def _slurm_tasks(environ: Mapping[str, str]) -> str:
    """The variable that says how many ranks there are: the step's, else the job's."""
    return "SLURM_STEP_NUM_TASKS" if environ.get("SLURM_STEP_NUM_TASKS") else "SLURM_NTASKS"


def _from_slurm(environ: Mapping[str, str]) -> Place:
    tasks = _slurm_tasks(environ)
    nodes = environ.get("SLURM_STEP_NODELIST") or environ.get("SLURM_JOB_NODELIST")
    if tasks not in environ:
        raise UserError("SLURM_NTASKS is not set: start the ranks with srun --ntasks N.")
    rank, world = _rank_of(environ, "SLURM_PROCID", tasks)
    address = environ.get("MASTER_ADDR") or (first_host(nodes) if nodes else None)
    if address is None:
        raise UserError(_NO_ADDRESS.format(launcher="srun"))
    job = f"{environ.get('SLURM_JOB_ID', '')}.{environ['SLURM_STEP_ID']}"
    # "2(x3),1": tasks on each node; what is needed is this node's number only where it is uniform.
    per_node = re.match(r"\d+", environ.get("SLURM_STEP_TASKS_PER_NODE", "1"))
    return Place(
        rank,
        world,
        _number(environ, "SLURM_LOCALID", 0),
        int(per_node[0]) if per_node else 1,
        address,
        _port(environ, _port_of(job)),
        "srun",
    )


def _from_mpi4py(environ: Mapping[str, str], launcher: str) -> Place | None:
    """Rank and address from MPI itself; None where mpi4py is not installed."""
    try:
        from mpi4py import MPI
    except ImportError:
        return None
    comm: Any = MPI.COMM_WORLD
    of_open_mpi = "OMPI_COMM_WORLD_RANK" in environ
    name = "OMPI_COMM_WORLD_SIZE" if of_open_mpi else "PMI_SIZE"
    expected = _number(environ, name, least=1)
    if comm.Get_size() != expected:
        raise UserError(
            f"{launcher} started {expected} ranks but mpi4py sees {comm.Get_size()}: it belongs to "
            f"another MPI; install the one that fits this {launcher}, or uninstall it."
        )
    local = comm.Split_type(MPI.COMM_TYPE_SHARED)
    mine = None
    if comm.Get_rank() == 0:
        one_host = local.Get_size() == expected
        host = environ.get("MASTER_ADDR") or ("127.0.0.1" if one_host else socket.gethostname())
        mine = (host, _port(environ, free_port()))
    address, port = comm.bcast(mine, root=0)
    return Place(
        comm.Get_rank(),
        expected,
        local.Get_rank(),
        local.Get_size(),
        address,
        port,
        f"{launcher}, mpi4py",
    )


def _rank_of(environ: Mapping[str, str], rank_name: str, world_name: str) -> tuple[int, int]:
    rank, world = _number(environ, rank_name), _number(environ, world_name, least=1)
    if rank >= world:
        raise UserError(f"{rank_name} must be below {world_name}, {world}, got {rank}.")
    return rank, world


def _number(
    environ: Mapping[str, str], name: str, default: int | None = None, least: int = 0
) -> int:
    text = environ.get(name)
    if text is None and default is not None:
        return default
    if text is None:
        raise UserError(f"{name} is not set, but others of its launcher's variables are: set it.")
    if not re.fullmatch("[0-9]+", text) or int(text) < least:
        raise UserError(f"{name} must be a whole number from {least} on, got {text!r}.")
    return int(text)


def _address(environ: Mapping[str, str], one_host: bool, launcher: str) -> str:
    if "MASTER_ADDR" in environ:
        return environ["MASTER_ADDR"]
    if not one_host:
        raise UserError(_NO_ADDRESS.format(launcher=launcher))
    return "127.0.0.1"


def _port(environ: Mapping[str, str], derived: int) -> int:
    text = environ.get("MASTER_PORT")
    if text is None:
        return derived
    if not text.isdigit() or not 0 < int(text) < 65536:
        raise UserError(f"MASTER_PORT must be a number from 1 to 65535, got {text!r}.")
    return int(text)


def _port_of(job: str) -> int:
    """The same number for all ranks of a job, another one for most other jobs."""
    return _FIRST_PORT + zlib.crc32(job.encode()) % _PORTS if job else _DEFAULT_PORT
