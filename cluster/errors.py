"""The error that the cluster package raises if the cluster, not the user's data, is the reason to stop."""


class ClusterError(RuntimeError):
    """The cluster cannot do what was asked; the message is one sentence that says what to do."""
