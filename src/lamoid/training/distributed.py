"""Several processes that train one model: PyTorch's own engine, torch.distributed, under `torchrun`.

Each process (rank) runs the same recipe and takes its own rows of every batch. The sums of the loss, of the trained tokens
and of the gradients are added up over the ranks before the loop divides them, so that an update is the one that a single
process makes; the position in the data counts the rows of all ranks, however many there are.

The model is whole on every rank (Li et al. 2020, "PyTorch Distributed"), or every matrix is cut into as many shards as there
are ranks, and with it its gradient and Adam's moments (Rajbhandari et al. 2020, "ZeRO", stage 3; here FSDP2's `fully_shard`).
"""

import contextlib
import os
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, fields, replace
from datetime import timedelta
from typing import Any, TypeVar

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from lamoid.errors import RunError, UsageError
from lamoid.models.llama import Llama
from lamoid.training.loop import Batches, Objective

T = TypeVar("T")
ALONE_FOR_AT_MOST = timedelta(days=7)
"""How long the others wait while the first rank prepares a text; they end with it where it fails."""


@dataclass(frozen=True)
class World:
    """The processes of a run: how many there are, and which of them this is. Alone, every method does nothing."""

    rank: int = 0
    size: int = 1
    store: "dist.Store | None" = None

    @property
    def leads(self) -> bool:
        """Whether this is the process that prints, and writes what is written once."""
        return self.rank == 0

    def same(self, value: T) -> T:
        """The first rank's value on every rank."""
        if self.size == 1:
            return value
        values = [value]
        dist.broadcast_object_list(values, src=0, device=torch.device("cpu"))
        return values[0]

    def any(self, flag: Callable[[], bool]) -> Callable[[], bool]:
        """Whether the flag of one rank at least is set: what all of them have to ask at the same point."""
        if self.size == 1:
            return flag

        def agreed() -> bool:
            raised = torch.tensor(int(flag()))
            dist.all_reduce(raised, dist.ReduceOp.MAX)
            return bool(raised)

        return agreed

    def share(self, batches: Batches) -> Batches:
        """This rank's rows of every batch. Dropout is drawn from (position, rank), so that a run can go on exactly."""
        if self.size == 1:
            return batches

        def own(position: Any) -> tuple[Any, Any]:
            batch, following = batches(position)
            torch.manual_seed(int(np.random.SeedSequence([*position, self.rank]).generate_state(1)[0]))
            return own_rows(batch, self.rank, self.size), following

        return own

    def join(self, objective: Objective) -> Objective:
        """An objective whose gradients, zeros, are made where a rank has no trained token too: the others wait for them."""
        if self.size == 1:
            return objective

        def own(model: Any, batch: Any) -> tuple[Tensor, int]:
            loss, count = objective(model, batch)
            if not count:
                loss.backward()
            return loss, count

        return own

    def sum_up(self, model: nn.Module, loss_sum: float, n_trained: int) -> tuple[float, int]:
        """Add up loss, trained tokens and gradients over the ranks; those of shards were added up in the backward pass."""
        if self.size == 1:
            return loss_sum, n_trained
        totals = torch.tensor([loss_sum, n_trained], dtype=torch.float64)
        gradients = [p.grad for p in model.parameters() if p.grad is not None and not is_shard(p)]
        for work in [dist.all_reduce(tensor, async_op=True) for tensor in (totals, *gradients)]:
            work.wait()
        return float(totals[0]), int(totals[1])

    @contextlib.contextmanager
    def in_turn(self) -> Iterator[None]:
        """The first rank alone, then the others: they find what it has made."""
        if self.store is not None and not self.leads:
            self.store.wait(["prepared"], ALONE_FOR_AT_MOST)
        yield
        if self.store is not None and self.leads:
            self.store.set("prepared", "yes")

    @contextlib.contextmanager
    def gathered(self, model: nn.Module) -> Iterator[None]:
        """Inside, what the first rank trains is whole, in main memory, one parameter after the other brought together."""
        kept = [(m, name, p) for m in model.modules() for name, p in m._parameters.items() if p is not None]
        whole: dict[Tensor, nn.Parameter] = {}
        for module, name, parameter in kept:
            if not (is_shard(parameter) and parameter.requires_grad):
                continue
            if parameter not in whole:  # what is tied is met twice
                full = parameter.full_tensor().cpu()  # type: ignore[attr-defined]
                whole[parameter] = nn.Parameter(full if self.leads else full.new_empty(0))
            if self.leads:
                module._parameters[name] = whole[parameter]
        try:
            yield
        finally:
            for module, name, parameter in kept:
                module._parameters[name] = parameter


_WORLD: ContextVar[World] = ContextVar("world", default=World())  # noqa: B039 - it is frozen


def current() -> World:
    """The processes of this run: one, outside `processes`."""
    return _WORLD.get()


@contextlib.contextmanager
def processes(timeout_s: int) -> Iterator[World]:
    """Join the processes that torchrun started, of which the first alone prints; alone, do nothing.

    The first rank that fails says why, the others leave with exit code 4. Raises RunError where another process is gone, or
    did not answer for `timeout_s` seconds.
    """
    wanted = os.environ.get("WORLD_SIZE", "1")
    if wanted == "1":
        yield World()
        return
    if missing := [name for name in ("RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT") if name not in os.environ]:
        raise UsageError(
            f"WORLD_SIZE is {wanted}, but {', '.join(missing)} not set; start it with torchrun, or unset it"
        )
    from torch.distributed.distributed_c10d import PrefixStore
    from torch.distributed.rendezvous import rendezvous

    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    timeout = timedelta(seconds=timeout_s)
    store, rank, size = next(iter(rendezvous("env://", timeout=timeout)))
    world = World(rank, size, PrefixStore("lamoid", store))
    token = _WORLD.set(world)
    try:
        dist.init_process_group(store=store, rank=rank, world_size=size, timeout=timeout)
        with _silent(not world.leads):
            yield world
        dist.destroy_process_group()
    except Exception as error:
        if not _is_first_to_fail(world):
            raise SystemExit(RunError.exit_code) from error
        if _is_from_engine(error):
            raise RunError(
                f"rank {rank} of {size} waits for another process, which has ended or did not answer for {timeout_s} s; "
                f"what was saved stays, and the same command goes on from there"
            ) from error
        raise
    finally:
        _WORLD.reset(token)


@contextlib.contextmanager
def _silent(silent: bool) -> Iterator[None]:
    if not silent:
        yield
        return
    with open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere), contextlib.redirect_stderr(nowhere):
        yield


def _is_first_to_fail(world: World) -> bool:
    assert world.store is not None
    try:
        return world.store.add("failed", 1) == 1
    except RuntimeError:  # the store itself is gone, with the process that kept it
        return True


def _is_from_engine(error: Exception) -> bool:
    text = str(error).lower()
    return isinstance(error, dist.DistError) or (isinstance(error, RuntimeError) and ("gloo" in text or "nccl" in text))


def own_rows(batch: Any, rank: int, size: int) -> Any:
    """A rank's rows of a batch, a dataclass of tensors with a row in each line; ranks differ by one row at most.

    Raises UsageError where there are fewer rows than ranks.
    """
    parts = {field.name: getattr(batch, field.name) for field in fields(batch)}
    n_rows = next(len(part) for part in parts.values() if part is not None)
    if n_rows < size:
        raise UsageError(f"a batch has {n_rows} rows for {size} processes; raise --batch-rows, or start fewer of them")
    rows = slice(n_rows * rank // size, n_rows * (rank + 1) // size)
    return replace(batch, **{name: part[rows] for name, part in parts.items() if part is not None})


def is_shard(tensor: Tensor) -> bool:
    """Whether a tensor lies in shards (a DTensor); asked without importing what defines it, which takes time."""
    return hasattr(tensor, "to_local")


def is_sharded(model: nn.Module) -> bool:
    """Whether the parameters of a model lie in shards."""
    return any(is_shard(parameter) for parameter in model.parameters())


def shard(model: nn.Module, world: World) -> None:
    """Cut the parameters of a Llama, adapted or not, into shards, in place: a unit for each block, and one for the rest.

    A unit is brought together for its products and cut again; its gradients are added up over the ranks, not averaged.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import FSDPModule, fully_shard, register_fsdp_forward_method

    if not isinstance(model, Llama):
        raise UsageError(
            f"parallel is 'sharded', which is for Llamas; train a {type(model).__name__} with --parallel data"
        )
    mesh = init_device_mesh(next(model.parameters()).device.type, (world.size,))
    for block in model.layers:
        fully_shard(block, mesh=mesh)
    fully_shard(model, mesh=mesh)
    register_fsdp_forward_method(model, "hidden_states")
    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.set_gradient_divide_factor(1.0)
            unit.set_force_sum_reduction_for_comms(True)
            unit.unshard()  # once outside inference mode, in which an evaluation could be the first to do it
            unit.reshard()


def reshard(model: nn.Module) -> None:
    """Cut what an evaluation left together: without a backward pass the unit of embedding and output stays whole."""
    if not is_sharded(model):
        return
    from torch.distributed.fsdp import FSDPModule

    for unit in model.modules():
        if isinstance(unit, FSDPModule):
            unit.reshard()


def placed_like(tensor: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor as its parameter lies: this rank's shard of it, or the tensor itself."""
    if not is_shard(parameter):
        return tensor
    from torch.distributed.tensor import DTensor, distribute_tensor

    assert isinstance(parameter, DTensor)
    on_device = tensor.to(parameter.device, parameter.dtype)
    return distribute_tensor(on_device, parameter.device_mesh, parameter.placements, src_data_rank=None)
