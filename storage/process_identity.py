"""Identifies a process on a machine, to find out whether it has ended.

This is known only on the same machine and before its next boot. A host name and a process number are not enough,
because containers share names and numbers, and numbers are used again.
"""

import os
import socket
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Self


@dataclass(frozen=True)
class ProcessIdentity:
    """A process.

    Attributes:
        machine: the ids of the boot and of the process number space; the host's name if the system has no such ids.
        pid: its process number.
        ticks: when it began, in the kernel's ticks since the boot; 0 if the system does not tell.
    """

    machine: str
    pid: int
    ticks: int

    @classmethod
    def own(cls) -> Self:
        """This process."""
        return cls(_this_machine(), os.getpid(), _began(os.getpid()) or 0)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Self:
        """The process from a record of `dataclasses.asdict`, or of an earlier version with only host and pid.

        Raises:
            KeyError, TypeError, ValueError: the record is incomplete, or its process number is impossible.
        """
        pid = int(record["pid"])
        if not 0 < pid < 1 << 31:
            raise ValueError(f"process {pid}")
        return cls(str(record.get("machine", "")), pid, int(record.get("ticks", 0)))

    def is_known_to_have_ended(self) -> bool:
        """Whether the process has ended; also False if this machine cannot know it."""
        if self.machine != _this_machine():
            return False
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return True
        except PermissionError:
            pass
        began = _began(self.pid)
        return began is not None and (began < 0 or (bool(self.ticks) and began != self.ticks))


@cache
def _this_machine() -> str:
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {os.readlink('/proc/self/ns/pid')}"
    except OSError:  # not Linux
        return socket.gethostname()


def _began(pid: int) -> int | None:
    """The ticks at which a process began; -1 if it has ended and waits for its parent; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
