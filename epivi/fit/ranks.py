"""The processes of one fit, started by torchrun: what they exchange, and how they begin, go on and end together.

Every process keeps networks, hyper-parameters and optimizer of its own. They stay the same bit for bit, because all
begin alike and take the same steps, along gradients summed over the processes; only the loci that a process reads and
the noise that it draws are its own. A fit of one process exchanges nothing and has no process group.

Nothing here imports torch before it is needed, since what every family imports serves --help too.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar

from epivi.base.errors import UserError

if TYPE_CHECKING:
    import torch
    from torch.distributed import ProcessGroup


Value = TypeVar("Value")

# A process that did not answer for so long within a step is taken for lost.
STEP_TIMEOUT = timedelta(minutes=10)
# Stages that the first process does for all take as long as they take; the launcher ends the others if it is lost.
STAGE_TIMEOUT = timedelta(days=30)


class OthersEnded(UserError):
    """The fit ends for a reason of another process, or for one that all have: the first process says it."""


@dataclass(frozen=True)
class Ranks:
    """This process, number `rank` of `size`, and number `local_rank` of `local_size` on its machine."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    stage_group: ProcessGroup | None = None  # that of all processes with STAGE_TIMEOUT
    gpu_group: ProcessGroup | None = None  # nccl, where every process has a GPU

    @property
    def is_first(self) -> bool:
        """Whether this is the process that writes files, logs and shows progress."""
        return self.rank == 0

    def own_device(self, device: torch.device) -> torch.device:
        """The device of this process: of GPUs that of its number on the machine.

        Raises UserError where the machine has fewer GPUs than processes.
        """
        import torch

        if self.size == 1 or device.type == "cpu":
            return device
        if torch.cuda.device_count() < self.local_size:
            raise UserError(
                f"fit.device: {self.local_size} processes on a machine that shows {torch.cuda.device_count()} CUDA "
                "devices; expected one for each, or fit.device cpu"
            )
        torch.cuda.set_device(self.local_rank)
        return torch.device("cuda", self.local_rank)

    def add_up(self, values: torch.Tensor) -> torch.Tensor:
        """Sum over the processes, the same bits in each."""
        import torch.distributed as dist

        if self.size == 1:
            return values
        total = values.clone()
        with _exchange():
            dist.all_reduce(total, group=self.gpu_group if total.is_cuda else None)
        return total

    def any_of(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process has set it."""
        import torch

        return list(flags) if self.size == 1 else (self.add_up(torch.tensor(flags, dtype=torch.int64)) > 0).tolist()

    def gather(self, value: Value) -> list[Value]:
        """The value of every process, in the order of their numbers."""
        import torch.distributed as dist

        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        with _exchange():
            dist.all_gather_object(values, value)
        return values

    def from_first(self, function: Callable[[], Value]) -> Value:
        """What the function gives in the first process, which alone calls it, while the others wait."""
        import torch.distributed as dist

        if self.size == 1:
            return function()
        values: list[Any] = [function() if self.is_first else None]
        with _exchange():
            dist.broadcast_object_list(values, src=0, group=self.stage_group)
        received: Value = values[0]
        return received

    def require_same(self, value: str, what: str) -> None:
        """Raise OthersEnded unless the value, which is `what`, is the same in all processes."""
        if len(set(self.gather(value))) > 1:
            raise OthersEnded(
                f"the {self.size} processes of the fit differ in {what}; expected the same configuration, the same "
                "version of epivi and the same kind of processor for each"
            )

    @contextmanager
    def together(self) -> Iterator[None]:
        """A part without exchange that all processes must get through: what a user did wrong is said once."""
        problem = None
        try:
            yield
        except UserError as error:
            if self.size == 1:
                raise
            problem = str(error)
        problems = [text for text in self.gather(problem) if text is not None]
        if problems:
            raise OthersEnded(problems[0])


ALONE = Ranks()


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started with this one, for as long as they work together; ALONE without torchrun."""
    if "TORCHELASTIC_RUN_ID" not in os.environ or os.environ["WORLD_SIZE"] == "1":
        yield ALONE
        return
    import torch
    import torch.distributed as dist

    with _exchange():
        dist.init_process_group("gloo", timeout=STEP_TIMEOUT)
    try:
        with _exchange():
            stage_group = dist.new_group(backend="gloo", timeout=STAGE_TIMEOUT)
            has_gpu = [False] * dist.get_world_size()
            dist.all_gather_object(has_gpu, torch.cuda.is_available() and dist.is_nccl_available())
            gpu_group = dist.new_group(backend="nccl", timeout=STEP_TIMEOUT) if all(has_gpu) else None
        local_rank, local_size = (int(os.environ[name]) for name in ("LOCAL_RANK", "LOCAL_WORLD_SIZE"))
        yield Ranks(dist.get_rank(), dist.get_world_size(), local_rank, local_size, stage_group, gpu_group)
    finally:
        dist.destroy_process_group()


@contextmanager
def _exchange() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:  # the connection is closed, or nothing came before the time-out
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise OthersEnded(
            f"a process of the fit was lost ({reason}); the same command continues from the last checkpoint"
        ) from error
