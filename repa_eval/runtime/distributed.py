"""Processes that share one piece of work (samples, features): by `accelerate launch` or torchrun, or one alone."""

from __future__ import annotations

import contextlib
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NoReturn


@dataclass(frozen=True)
class Share:
    """One of `count` processes, and where it computes."""

    rank: int = 0
    count: int = 1
    device: str = "cpu"

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and concludes."""
        return self.rank == 0

    def agree(self, value: Any) -> Any:
        """Return the first process's value, in every process."""
        if self.count == 1:
            return value
        from accelerate.utils import broadcast_object_list

        held = [value]
        broadcast_object_list(held, from_process=0)
        return held[0]

    def of(self, missing: Sequence[int], batch_size: int) -> list[int]:
        """Return this process's part of the missing indices, in whole batches (see generate.py)."""
        mine = set(sorted({index // batch_size for index in missing})[self.rank :: self.count])
        return [index for index in missing if index // batch_size in mine]

    def gather(self, parts: list[Any]) -> list[Any]:
        """Return the lists of all processes as one, in every process, in the order of the ranks."""
        if self.count == 1:
            return parts
        from accelerate.utils import gather_object

        found: list[Any] = gather_object(parts)
        return found

    def wait(self) -> None:
        """Return when every process has come here."""
        if self.count > 1:
            from accelerate import PartialState

            PartialState().wait_for_everyone()


ALONE = Share()


def join(device: str) -> Share:
    """Return this process's share. device: cpu, cuda or cuda:N, as for one process alone."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        return Share(device=device)
    from accelerate import PartialState

    # the slowest process may be hours behind the first
    state = PartialState(cpu=device == "cpu", timeout=timedelta(days=7))
    return Share(state.process_index, state.num_processes, str(state.device))


def is_first_process() -> bool:
    """Return whether this is the process that speaks: alone, or the first that the launcher started."""
    return os.environ.get("RANK", "0") == "0"


def leave(code: int = 0) -> NoReturn:
    """End this process with an exit code, after `join` or without.

    One of several that talk by gloo ends at once: gloo's thread may still hold a tensor of the last exchange, and needs
    the interpreter's lock to drop it. While the interpreter is taken down that aborts the process; within
    destroy_process_group it waits for ever, as torch 2.6 holds that lock there.
    """
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        if distributed.get_backend() == "gloo":
            with contextlib.suppress(OSError):  # a reader that has gone
                sys.stdout.flush()
                sys.stderr.flush()
            os._exit(code)
        distributed.destroy_process_group()
    sys.exit(code)
