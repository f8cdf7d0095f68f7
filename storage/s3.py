"""The S3 file systems of this process, and one clear sentence for each of their errors.

The usual ``AWS_*`` variables configure everything, also ``AWS_ENDPOINT_URL``. The module `s3_waiting` limits how long a
request waits for the server.
"""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import TYPE_CHECKING, Any

from storage.errors import NoBucket, StorageError

if TYPE_CHECKING:
    from storage.s3_waiting import PatientFileSystem

_CREDENTIALS = (
    "check the AWS_* variables, the profile or role, and the bucket's policy, then run the same command again"
)
_MISSING_CREDENTIALS = (
    "on AWS, give the machine a role, or name a profile in AWS_PROFILE (if it uses SSO, run 'aws sso login' first); "
    "elsewhere, set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
)
_CREDENTIAL_ERRORS = (  # of botocore, when it finds no complete credentials
    "NoCredentialsError",
    "PartialCredentialsError",
    "CredentialRetrievalError",
    "ProfileNotFound",
    "SSOError",
    "TokenRetrievalError",
)
_ADVICE = {
    "NoSuchBucket": "the bucket does not exist; create it or correct the path",
    "ExpiredToken": f"the credentials have expired; {_CREDENTIALS}",
    "InvalidAccessKeyId": f"the access key is not known to the server; {_CREDENTIALS}",
    "SignatureDoesNotMatch": f"the secret key does not belong to the access key; {_CREDENTIALS}",
    "400": "the server refused the request (400), so the region may be wrong, or the session token may have expired; "
    "set AWS_DEFAULT_REGION to the bucket's region, or renew the credentials",
    "SlowDown": "the server still throttles after all retries; run the same command again, with fewer workers",
}
_OTHER_REGION = {"301", "PermanentRedirect", "400", "AuthorizationHeaderMalformed"}  # numbers: HEAD has no other code


def file_system(asynchronous: bool = False) -> "PatientFileSystem":
    """This process's S3 file system, with the credentials, the endpoint and the limits in the environment now.

    Args:
        asynchronous: return the file system that zarr uses from its own event loop.

    Raises:
        StorageError: an environment variable should be a number but is not.
    """
    settings = tuple(sorted(item for item in os.environ.items() if item[0].startswith(("AWS_", "FICKLENET_S3_"))))
    return _file_system(os.getpid(), asynchronous, settings)


@cache
def _file_system(_process: int, asynchronous: bool, _settings: tuple[tuple[str, str], ...]) -> "PatientFileSystem":
    from storage.s3_waiting import PatientFileSystem, Waiting  # s3fs takes half a second, and folders do not need it

    # fsspec's own cache has one instance per *thread*, which would log in again for every reader thread.
    # The process is part of the key, because an event loop does not survive a fork.
    waiting = Waiting.from_environment()
    return PatientFileSystem(
        waiting=waiting,
        asynchronous=asynchronous,
        skip_instance_cache=True,
        use_listings_cache=False,  # other machines write here too
        config_kwargs={
            "connect_timeout": min(10.0, waiting.request_seconds),
            "read_timeout": waiting.request_seconds,
            "max_pool_connections": 64,
            # Full jitter, 1 to 20 s apart; s3fs multiplies this by five for throttling and lost connections.
            "retries": {
                "mode": "standard",
                "total_max_attempts": int(os.environ.get("AWS_MAX_ATTEMPTS", "6")),
            },
        },
    )


@contextmanager
def storage_errors(uri: str) -> Iterator[None]:
    """Turn errors of the store inside the `with` block into `StorageError`.

    Errors about only this name (`FileNotFoundError`, `IsADirectoryError`, `NotADirectoryError`, `FileExistsError`) are
    not changed, so the caller can handle them.
    """
    try:
        yield
    except StorageError:
        raise
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError) as error:
        if is_bucket_missing(error):
            raise NoBucket(f"{uri}: {_ADVICE['NoSuchBucket']}.") from error
        is_of_s3 = server_code(error) or str(error) == uri.removeprefix(
            "s3://"
        )  # neither is a sentence with the address
        if isinstance(error, FileNotFoundError) and is_of_s3:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), uri) from error
        raise
    except _store_errors() as error:
        kind = NoBucket if server_code(error) == "NoSuchBucket" else StorageError
        raise kind(f"{uri}: {_sentence(error)}.") from error


def is_bucket_missing(error: BaseException) -> bool:
    """Whether a `FileNotFoundError` means that the bucket is missing; s3fs raises it as for a missing object."""
    return server_code(error) == "NoSuchBucket"


def _sentence(error: Exception) -> str:
    code = server_code(error)
    if code in _OTHER_REGION and (region := _region_of_the_bucket(error)):
        return f"the bucket is in the region {region}, and the request was for another; set AWS_DEFAULT_REGION={region}"
    if code in _ADVICE:
        return _ADVICE[code]
    if code in _OTHER_REGION:
        return f"the bucket is in another region ({code}); set AWS_DEFAULT_REGION to the bucket's region"
    if isinstance(error, PermissionError):
        return (
            f"access denied ({code}); {_CREDENTIALS}"
            if code
            else "permission denied; check the folder's owner and mode"
        )
    if code is not None:  # only the code, because a server's message may quote the request
        return f"the server answered {code} after all retries; run the same command again"
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "the disk or quota is full; free some space, then run the same command again"
    if isinstance(error, OSError):
        return error.strerror or str(error).rstrip(".") or type(error).__name__
    reason = str(error).rstrip(".")
    if isinstance(error, tuple(cls for name in _CREDENTIAL_ERRORS for cls in _botocore_error(name))):
        return f"{reason}; {_MISSING_CREDENTIALS}"
    return f"{reason}; check {endpoint_setting()}the AWS_* variables and the network"


def endpoint_setting() -> str:
    """The start of a list of what may be wrong: "AWS_ENDPOINT_URL, " if this variable is set, else ""."""
    return "AWS_ENDPOINT_URL, " if os.environ.get("AWS_ENDPOINT_URL") else ""


def server_code(error: BaseException | None) -> str | None:
    """The S3 error code behind an exception, such as ``"AccessDenied"``; None if no server answered."""
    answer = _server_answer(error)
    return None if answer is None else str(answer.get("Error", {}).get("Code", "error"))


def _region_of_the_bucket(error: BaseException) -> str:
    """The region that a server named in its answer; "" if it named none."""
    headers = (_server_answer(error) or {}).get("ResponseMetadata", {}).get("HTTPHeaders", {})
    region = str(headers.get("x-amz-bucket-region", ""))
    return region if re.fullmatch(r"[a-z0-9-]+", region) else ""


def _server_answer(error: BaseException | None) -> dict[str, Any] | None:
    """botocore's record of the answer behind an exception; None if no server answered."""
    while error is not None:
        if isinstance(error, _botocore_error("ClientError")):
            return error.response  # type: ignore[attr-defined, no-any-return]
        error = error.__cause__ or error.__context__
    return None


def _store_errors() -> tuple[type[Exception], ...]:
    return (OSError, *_botocore_error("BotoCoreError"))


def _botocore_error(name: str) -> tuple[type[Exception], ...]:
    """A class of botocore's exceptions; none as long as botocore is not imported, because then nothing raises it."""
    module = sys.modules.get("botocore.exceptions")
    return () if module is None else (getattr(module, name),)
