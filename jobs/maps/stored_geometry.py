"""Where the cells of stored maps and seeds lie: the store keeps it, so that readers need no network."""

from typing import Any

from ficklenet.geometry import GridGeometry
from storage.map_store import MapStore
from storage.seed_store import SeedStore


def geometry_attributes(geometry: GridGeometry) -> dict[str, Any]:
    """What a store keeps of a geometry."""
    return {"stride": geometry.stride, "frame": geometry.frame}


def stored_geometry(store: MapStore | SeedStore) -> GridGeometry:
    """The geometry of a store; stores made before it was kept have stride 8, corners aligned."""
    attributes: dict[str, Any] = dict(store.attributes)
    return GridGeometry(int(attributes.get("stride", 8)), attributes.get("frame", "corners"))
