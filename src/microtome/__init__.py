"""Lazy, array-native whole-slide images: open a slide wherever it lives, get an xarray tree, read only what is needed.

>>> import microtome as mt
>>> slide = mt.open_slide("folder/of/instances")  # doctest: +SKIP
>>> slide["level0"].image[0:512, 0:512].values  # doctest: +SKIP
"""

from microtome import config, errors
from microtome.opening import open_slide
from microtome.ops import accessors as _accessors

__version__ = "0.1.0"
__all__ = ["config", "errors", "open_slide"]
_accessors.register()
