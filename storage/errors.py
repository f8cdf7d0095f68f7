"""The errors that can stop a step or an image; each kind is handled differently."""

MISSING = "missing: no such file"  # a `BadImage` with this reason may come back, as when a folder is mounted


class StorageError(OSError):
    """The store itself failed: access denied, expired credentials, no such bucket, disk full, throttling.

    The step stops; the message is one sentence without secrets, and the same command continues later.
    """


class NoBucket(StorageError):  # noqa: N818  as NotYet: what the user gave is the reason
    """The bucket of an address does not exist: the input is wrong, and the same command does not continue."""


class NotYet(ValueError):  # noqa: N818  nothing is wrong, only early
    """Another step that is needed is not finished yet; the message names the command that runs it."""


class BadImage(ValueError):  # noqa: N818  a finding about data, not a fault
    """An image, mask or saliency map cannot be used. It is skipped, and the reason is recorded.

    Attributes:
        reason: a short reason without the image's path, such as ``"empty file"``.
    """

    def __init__(self, reason: str) -> None:
        super().__init__(reason)
        self.reason = reason


class ColouredMask(BadImage):
    """A mask has colours, where the numbers of classes were expected."""


class Damaged(ValueError):  # noqa: N818  a finding about data, not a fault of the program
    """A stored object is missing or has changed, although a receipt says that it was written."""

    @classmethod
    def of(cls, place: object, what: str, first: str = "") -> "Damaged":
        """The error with a sentence that says what to do.

        Args:
            place: the object.
            what: what is wrong with it, such as ``"the file is missing"``.
            first: a sentence that says what to do before the repair.
        """
        return cls(
            f"{place}: damaged ({what}). {first}{' ' if first else ''}Run 'python jobs/verify.py --run RUN --repair' "
            "with this run's path. It finds all damage and computes the damaged units again."
        )
