"""Amounts as Kubernetes writes them."""

import re


def quantity(value: object) -> float:
    """A number of Kubernetes: 8, "500m" (thousandths), "12Gi" (powers of 1024) or "12G" (powers of 1000)."""
    found = re.fullmatch(r"(\d+\.?\d*)(m|[kKMGTPE]i?|)", str(value))
    if not found:
        raise ValueError(f"{value!r} is no amount of Kubernetes; write for example 7, 500m or 28Gi")
    number, unit = found.groups()
    if unit in ("", "m"):
        return float(number) / (1000 if unit else 1)
    return float(number) * (1024 if unit.endswith("i") else 1000) ** ("KMGTPE".index(unit[0].upper()) + 1)
