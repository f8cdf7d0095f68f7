"""Which process on which machine: whether it has ended can be asked only on the same boot of the same machine.

A host name and a number are not enough: containers share names and numbers, and numbers are used again.
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
        machine: the boot and the space of process numbers; the host's name where the system says neither.
        pid: its number there.
        ticks: when it began, in the kernel's ticks since the boot; 0 where the system does not say.
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
        """As it was written with `dataclasses.asdict`, or by an earlier version with host and pid alone.

        Raises:
            KeyError, TypeError, ValueError: the record does not say, or names a number that no process has.
        """
        pid = int(record["pid"])
        if not 0 < pid < 1 << 31:
            raise ValueError(f"process {pid}")
        return cls(str(record.get("machine", "")), pid, int(record.get("ticks", 0)))

    def is_known_to_have_ended(self) -> bool:
        """Whether the process has ended; False too where this machine cannot know."""
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
    """The ticks at which a process began; -1 of one that has ended and only waits for its parent; None if unknown."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return -1 if fields[0] == "Z" else int(fields[19])
    except (OSError, ValueError, IndexError):
        return None
