"""All contestants, in the order of the table."""

from __future__ import annotations

import re

from benchmarks.reload.contestants.base import Contestant, Kind
from benchmarks.reload.contestants.libraries import Arrow, EncodedArrow, Lance, LitData, MappedTensorDict
from benchmarks.reload.contestants.ours import Cached, Saved
from benchmarks.reload.contestants.plain import BareMap, PickledArray, PickledPictures, Safetensors, TorchMap

_ALL: list[Contestant] = [
    Saved(),
    Cached(),
    BareMap(),
    PickledArray(),
    PickledPictures(),
    TorchMap(),
    Safetensors(),
    MappedTensorDict(),
    Arrow(),
    EncodedArrow(),
    LitData(),
    Lance(),
]


def _key(one: Contestant) -> str:
    return re.sub(r"\W+", "-", one.name).strip("-").lower()


# By what `--contestants` takes.
CONTESTANTS: dict[str, Contestant] = {_key(one): one for one in _ALL}
# What others are compared with.
OURS = tuple(key for key, one in CONTESTANTS.items() if one.kind == "ours")
PICKLED_ARRAY, PICKLED_PICTURES = _key(PickledArray()), _key(PickledPictures())
QUICK = (*OURS, _key(BareMap()), PICKLED_ARRAY)

__all__ = ["CONTESTANTS", "OURS", "PICKLED_ARRAY", "PICKLED_PICTURES", "QUICK", "Contestant", "Kind"]
