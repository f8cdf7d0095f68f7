"""Files written by torch.save: reads those that this project wrote, and finds out whether their bytes have changed.

Such a file is a zip archive with a checksum of each entry. torch.load does not compare the checksums, so a flipped bit
would become another weight.
"""

import io
import pickle
import zipfile
from typing import Any


def changed_part(data: bytes) -> str | None:
    """The reason why the bytes are not what torch.save wrote; None if every entry has its checksum (CRC-32)."""
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            entry = archive.testzip()
    except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
        return f"it is no whole file of torch.save: {error}"
    return f"the bytes of {entry} have changed since it was written" if entry else None


def load_whole(data: bytes) -> Any:
    """The content of such a file: plain types, and tensors on the CPU. Reading it runs no code.

    Raises:
        ValueError: its bytes have changed, or it has other content; the message is only the reason.
    """
    import torch  # changed_part does without

    if reason := changed_part(data):
        raise ValueError(reason)
    try:
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise ValueError(str(error).partition("\n")[0]) from error
