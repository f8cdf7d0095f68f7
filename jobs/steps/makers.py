"""The versions of code and packages that computed the units of a step, to show if they are not all the same."""

from collections import Counter
from collections.abc import Iterable

from jobs.run.versions import code_id, computing_packages
from storage.receipts import Receipt


def makers(receipts: Iterable[Receipt], *, with_own: bool = False) -> dict[str, int]:
    """Number of units for each code and packages that computed them: {"0123456789ab with numpy 2.4.6": 12}.

    Packages are named only if their versions differ. Units without such a record are left out.

    Args:
        with_own: compare with this process too; its entry comes last and counts no unit.
    """
    counts = Counter((receipt.code, receipt.packages) for receipt in receipts if receipt.code)
    found = [maker for maker in counts if maker != own()]
    found += [own()] if with_own or own() in counts else []
    versions = [_versions(packages) for _, packages in found]
    differing = {item for each in versions for item in each if not all(item in other for other in versions if other)}
    return {
        code + (" with " + ", ".join(some) if (some := [item for item in each if item in differing]) else ""): counts[
            code, packages
        ]
        for (code, packages), each in zip(found, versions, strict=True)
    }


def own() -> tuple[str, str]:
    """The code and the packages of this process."""
    return code_id(), computing_packages()


def _versions(packages: str) -> list[str]:
    return [item for item in packages.split(", ") if item]
