"""The only package that knows Ray: connecting, the staged fan-out over units, the training shell.

It moves no bytes of storage and holds no model. Every contract here also runs in-process, without Ray.
"""

import os

# Ray reads these when it is imported, so they stand before any import of it. What the user has set wins.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # Ray reports usage to its makers unless told not to
os.environ.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # no 30 s of draining a node of our own
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for this poll; 2 s otherwise
