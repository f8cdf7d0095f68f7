"""Where the cells of stored maps and seeds lie. The store records it, so that readers need no network."""

from typing import Any

from ficklenet.geometry import GridGeometry
from storage.map_store import MapStore
from storage.seed_store import SeedStore


def geometry_attributes(geometry: GridGeometry) -> dict[str, Any]:
    """The attributes by which a store records a geometry."""
    return {"stride": geometry.stride, "frame": geometry.frame}


def stored_geometry(store: MapStore | SeedStore) -> GridGeometry:
    """The geometry of a store. Older stores do not record it; they have stride 8 and aligned corners."""
    attributes: dict[str, Any] = dict(store.attributes)
    return GridGeometry(int(attributes.get("stride", 8)), attributes.get("frame", "corners"))
