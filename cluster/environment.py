"""What the surroundings of this process say; imports no Ray."""

import os


def is_submitted_job() -> bool:
    """Whether `ray job submit` started this process: its working folder is a copy that is deleted afterwards."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ
