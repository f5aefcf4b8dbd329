"""Lazy, array-native whole-slide images: open a slide wherever it lives, get an xarray tree, read only what is needed.

>>> import microtome as mt
>>> slide = mt.open_slide("folder/of/instances")  # doctest: +SKIP
>>> slide["level0"].image[0:512, 0:512].values  # doctest: +SKIP
"""

from microtome import cluster, config, errors
from microtome.cohort import open_cohort
from microtome.finding import find_slides
from microtome.model import PixelSpacing
from microtome.opening import open_slide
from microtome.ops import accessors as _accessors
from microtome.storage import cache, credentials

__version__ = "0.1.0"
__all__ = [
    "PixelSpacing",
    "cache",
    "cluster",
    "config",
    "credentials",
    "errors",
    "find_slides",
    "open_cohort",
    "open_slide",
]
_accessors.register()
