"""What can be in the way of a step, told apart because it is answered differently."""


class StorageError(OSError):
    """The store itself failed: access denied, expired credentials, no such bucket, disk full, throttling.

    The step stops; the message is one sentence without secrets, and the same command continues later.
    """


class NotYet(ValueError):  # noqa: N818  nothing is wrong, only early
    """What a step builds on is not finished yet; the message names the command that makes it."""


class BadImage(ValueError):  # noqa: N818  a finding about data, not a fault
    """One image, mask or saliency map cannot be used; it is skipped and its reason recorded.

    Attributes:
        reason: one clear sentence without the image's path, e.g. ``"empty file"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason
