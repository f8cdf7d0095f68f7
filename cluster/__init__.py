"""The only package that imports Ray: it connects to clusters, fans units out in stages, and runs trainings.

It does not access storage and contains no models. Everything here also works in this process, without Ray.
"""

import os

# Ray reads these when it is imported, so they come before any import of Ray. Values set by the user are kept.
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # otherwise Ray sends usage statistics to its makers
os.environ.setdefault("RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S", "0")  # otherwise stopping a local Ray takes 30 s
os.environ.setdefault("RAY_ENABLE_AUTO_CONNECT", "0")  # otherwise Ray Data starts a new Ray when it ends after a Ctrl-C
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.2")  # a report waits for this poll; the default is 2 s
