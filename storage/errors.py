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


class Damaged(ValueError):  # noqa: N818  a finding about data, not a fault of the program
    """A stored object is missing, or is not what was written, though a receipt says that it was."""

    @classmethod
    def of(cls, place: object, what: str) -> "Damaged":
        """The finding as one sentence with its remedy.

        Args:
            place: the object.
            what: is wrong with it, e.g. ``"the file is missing"``.
        """
        return cls(
            f"{place}: damaged ({what}). Run 'python jobs/verify.py --run RUN --repair' with this run's path: it finds "
            "everything that is damaged and has it computed again."
        )
