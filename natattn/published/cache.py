"""Places in a key-value cache for attention layers that were made without an index."""

from weakref import WeakKeyDictionary

from torch import nn
from transformers import Cache

_PLACES: WeakKeyDictionary[Cache, WeakKeyDictionary[nn.Module, int]] = WeakKeyDictionary()


def place_in_cache(cache: Cache, module: nn.Module) -> int:
    """Index of a module's keys and values: the first free place when the module first met this cache.

    A model calls its layers in order, so that they get the places that an index would have given them.

    Raises: ValueError where no place is free, as in a copy of a cache that is in use.
    """
    places = _PLACES.setdefault(cache, WeakKeyDictionary())
    if module not in places:
        places[module] = _first_free(cache, taken=set(places.values()))
    return places[module]


def _first_free(cache: Cache, taken: set[int]) -> int:
    layers = cache.layers
    for place, layer in enumerate(layers):
        if place not in taken and not getattr(layer, "is_initialized", True):
            return place
    if cache.layer_class_to_replicate is None:  # it cannot grow
        raise ValueError(f"none of the cache's {len(layers)} layers is free: give the block its layer_idx")
    return len(layers)
