"""Facts from the environment of this process; imports no Ray."""

import os


def is_submitted_job() -> bool:
    """Whether `ray job submit` started this process: its working folder is a copy that is deleted afterwards."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
