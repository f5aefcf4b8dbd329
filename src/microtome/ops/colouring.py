"""Colour and stain on images: lazily, chunk by chunk, each pixel by itself.

Colour comes after resampling: a level is converted once, from the stored values whose profile it is, and what is
averaged are the values that the scanner's own pyramid averages, so that a resampled level looks as a stored one does.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import xarray as xr

from microtome.errors import NoProfileWarning, OptionError
from microtome.lazy.array import SlideArray
from microtome.lazy.base import LazyArray, plane_dims
from microtome.lazy.derived import DerivedArray
from microtome.lazy.recipe import OpenSlide
from microtome.lazy.unwrap import View, unwrap
from microtome.ops.colour import (
    PROFILE_NAMES,
    ColourTransform,
    Intent,
    Pseudocolour,
    auto_windows,
    colour_of_wavelength,
    default_colours,
    parse_colour,
    profile_bytes,
)
from microtome.ops.levels import middle_plane
from microtome.ops.mapped import MappedArray, map_pixels
from microtome.ops.metadata import profile_of

__all__ = ["PlainFunction", "ProfileFunction", "is_raw", "pseudocolour", "stain_image", "to_profile"]

Pixels = npt.NDArray[Any]
RGB = ("r", "g", "b")
_transforms: weakref.WeakKeyDictionary[OpenSlide, dict[Any, ColourTransform | None]] = weakref.WeakKeyDictionary()
_warned: weakref.WeakSet[OpenSlide] = weakref.WeakSet()


@dataclass(frozen=True)
class ProfileFunction:
    """From the profile of each optical path to a target, for `MappedArray`; it carries no profile of the slide.

    Parameters
    ----------
    target
        A name of `PROFILE_NAMES`, or the bytes of a profile.
    intent
        Rendering intent.
    dtype
        Of the pixels.
    source
        The profile of the pixels, where they are not a slide's.
    """

    target: str | bytes
    intent: Intent
    dtype: np.dtype[Any]
    source: bytes | None = None
    channels: int = field(default=3, init=False)

    def __repr__(self) -> str:
        names = [p if isinstance(p, str) else _digest(p) for p in (self.target, self.source or "slide")]
        return f"ProfileFunction({', '.join(names)}, {self.intent}, {self.dtype})"

    def transform(self, opened: OpenSlide | None, node: str, path: int) -> ColourTransform | None:
        """Return what converts the pixels of an optical path; None where it has no profile."""
        if self.source is not None or opened is None:
            return ColourTransform(self.source or b"", profile_bytes(self.target), self.intent)
        known = _transforms.setdefault(opened, {})
        key = (self.target, self.intent, node, path)
        if key not in known:
            profile = profile_of(opened, node, path)
            known[key] = None if profile is None else ColourTransform(profile, profile_bytes(self.target), self.intent)
        return known[key]

    def bind(self, source: LazyArray | None, key: tuple[Any, ...]) -> Callable[[Pixels], Pixels]:
        """Return the function (..., y, x, 3) -> the same converted; see `PixelFunction`."""
        if source is None:
            transform = self.transform(None, "", 0)
            assert transform is not None
            return transform
        opened, node = source.opened, source.node
        numbers = paths_of(source, key)
        found = [self.transform(opened, node, n) for n in np.atleast_1d(numbers).tolist()]
        first = found[0] if found else None
        if len(found) <= 1 or all(t == first for t in found):
            return _unchanged if first is None else first

        def convert(pixels: Pixels) -> Pixels:
            # optical paths are the last axis before rows and columns
            result = pixels.copy()
            for n, transform in enumerate(found):
                if transform is not None:
                    result[..., n, :, :, :] = transform(pixels[..., n, :, :, :])
            return result

        return convert


def _unchanged(pixels: Pixels) -> Pixels:
    return pixels


def _digest(profile: bytes) -> str:
    return blake2b(profile, digest_size=12).hexdigest()


def paths_of(array: LazyArray, key: tuple[Any, ...]) -> Any:
    """Return the numbers of the optical paths that a part of an RGB array shows: an array, or one number."""
    at = dict(zip(array.dims, key, strict=True))
    if isinstance(array, DerivedArray):
        return paths_of(array.source, array.below(key, "y", "x", "c"))
    count = dict(zip(array.dims, array.shape, strict=True)).get("path", 1)
    return np.arange(count)[at.get("path", slice(None))]


def to_profile(
    image: xr.DataArray,
    target: str | Path | bytes,
    *,
    intent: Intent = "perceptual",
    require: bool = False,
    source: str | Path | bytes | None = None,
) -> xr.DataArray:
    """Return an image in the colours of another profile; see `ImageAccessor.to_profile`."""
    wanted: str | bytes = target if isinstance(target, str) and target in PROFILE_NAMES else profile_bytes(target)
    image = _in_rgb_order(image)
    view = unwrap(image.variable)
    _check_rgb(image, view)
    if image.attrs.get("bits_stored", 8 * image.dtype.itemsize) != 8 * image.dtype.itemsize:
        raise OptionError(
            f"this image has {image.attrs['bits_stored']} of {8 * image.dtype.itemsize} bits, and an ICC profile "
            "describes all of them: scale its values to the whole range first"
        )
    given = None if source is None else profile_bytes(source)
    function = ProfileFunction(wanted, intent, image.dtype, given)
    if given is None:
        if view is None:
            raise OptionError(
                "of an image that is computed it is not known which profile its colours have: convert the level it is "
                "made from, or say which by source="
            )
        opened, node = view.array.opened, view.array.node
        paths = np.atleast_1d(paths_of(view.array, view.key)).tolist()
        lacking = [p for p in paths if function.transform(opened, node, p) is None]
        if lacking and require:
            raise OptionError(f"{node} has no ICC profile: its colours cannot be converted; source= gives it one")
        if lacking and opened not in _warned:
            _warned.add(opened)
            warnings.warn(
                f"{opened.ref.recipe.where}: {node} has no ICC profile: its colours are left as they are; require=True "
                "makes this an error, source= gives it a profile",
                NoProfileWarning,
                stacklevel=3,
            )
        if len(lacking) == len(paths):
            return image
    else:
        function.transform(None, "", 0)
    return map_pixels(image, function, RGB, "RGB")


def _in_rgb_order(image: xr.DataArray) -> xr.DataArray:
    """Return an image with its channels in the order red, green, blue, if that is what they are called."""
    labels = [str(c) for c in image.coords["c"].values.ravel()] if "c" in image.coords else list(RGB)
    if labels != list(RGB) and sorted(labels) == sorted(RGB):
        return image.sel(c=list(RGB))
    return image


def _check_rgb(image: xr.DataArray, view: View | None) -> None:
    if image.sizes.get("c") != 3 or (view is not None and _is_raw(view.array)):
        raise OptionError(
            "an ICC profile describes RGB, and these are the values of single channels, whose profile, if they have "
            "one, describes their pseudo-colours: make RGB of them with wsi.pseudocolor()"
        )
    if image.dtype not in (np.uint8, np.uint16):
        raise OptionError(f"an ICC profile describes RGB of 8 or 16 bit, and this image is {image.dtype}")


def is_raw(image: xr.DataArray) -> bool:
    """Tell whether the channels of an image are those of single optical paths, as stored."""
    view = unwrap(image.variable)
    return view is not None and _is_raw(view.array)


def _is_raw(array: LazyArray) -> bool:
    """Tell whether the channels of an array are those of single optical paths, as stored."""
    if isinstance(array, MappedArray):
        return False
    if isinstance(array, DerivedArray):
        return _is_raw(array.source)
    return isinstance(array, SlideArray) and not array.reader.colour


@dataclass(frozen=True)
class PlainFunction:
    """A function of pixels that needs to know nothing of where they come from, for `MappedArray`."""

    function: Callable[[Pixels], Pixels]
    channels: int
    dtype: np.dtype[Any]

    def bind(self, source: LazyArray | None, key: tuple[Any, ...]) -> Callable[[Pixels], Pixels]:
        """Return the function; see `PixelFunction`."""
        return self.function


def pseudocolour(
    image: xr.DataArray,
    windows: Sequence[Any] | None,
    colours: Sequence[Any] | None,
    percentiles: tuple[float, float],
) -> xr.DataArray:
    """Return channels as RGB; see `ImageAccessor.pseudocolor`. MONOCHROME1 is darkest where its values are greatest."""
    if "c" not in image.dims:
        raise OptionError("this image has no dimension c: there are no channels to be given colours")
    channels = image.sizes["c"]
    view = unwrap(image.variable)
    if view is not None and not _is_raw(view.array):
        raise OptionError("this image is in colour already: pseudocolor() is for channels of single optical paths")
    if colours is None:
        colours = _own_colours(image, channels)
    if windows is None:
        windows = auto_windows(_sample(image, view), percentiles)
        if image.attrs.get("photometric_interpretation") == "MONOCHROME1":
            windows = [(high, low) for low, high in windows]
    function = Pseudocolour(tuple(windows), tuple(parse_colour(c) for c in colours))
    if len(function.windows) != channels:
        raise OptionError(f"{len(function.windows)} windows and colours were given for {channels} channels")
    return map_pixels(image, PlainFunction(function, 3, np.dtype(np.uint8)), RGB, "RGB")


def _own_colours(image: xr.DataArray, channels: int) -> Sequence[Any]:
    """Return colours by the wavelengths of optical paths where each states one, else different ones."""
    waves = {p.get("label"): p.get("wavelength_nm") for p in image.attrs.get("optical_paths", [])}
    labels = [str(c) for c in image.coords["c"].values] if "c" in image.coords else []
    known = [waves.get(label) for label in labels]
    try:
        return [parse_colour(label.lower()) for label in labels]  # paths may be named after the colour of their light
    except OptionError:
        pass
    if channels > 1 and len(known) == channels and all(known) and len(set(known)) == channels:
        return [colour_of_wavelength(float(w)) for w in known if w]
    return default_colours(channels) if channels > 1 else [(255, 255, 255)]


def _sample(image: xr.DataArray, view: View | None) -> Pixels:
    """Return pixels (..., channels) that tell the range of values: the coarsest level's, or some of the image's."""
    from microtome.lazy.datasets import dataset
    from microtome.ops.resize import resize

    source = image
    if view is not None and not view.array.node.startswith("associated/"):
        names = [n for n in view.array.opened.slide.images if n.startswith("level")]
        coarsest = dataset(view.array.opened, names[-1])["image"]
        if "c" in image.coords and set(image.coords["c"].values.tolist()) <= set(coarsest.coords["c"].values.tolist()):
            source = coarsest.sel(c=image.coords["c"].values)
    source = middle_plane(source)
    rows, columns = (min(source.sizes[d], 512) for d in plane_dims(source.dims))
    small = resize(source, shape=(rows, columns))
    return small.transpose(..., "c").values


def stain_image(
    image: xr.DataArray, function: Callable[[Pixels], Pixels], channels: Sequence[str], dtype: Any
) -> xr.DataArray:
    """Return what a function makes of the stains of an RGB image, lazily."""
    if image.sizes.get("c") != 3 or image.dtype != np.uint8 or is_raw(image):
        raise OptionError(f"stains are those of RGB images of 8 bit, not of {image.sizes.get('c', 1)} x {image.dtype}")
    image = _in_rgb_order(image)
    photometric = "RGB" if tuple(channels) == RGB else None
    return map_pixels(image, PlainFunction(function, len(channels), np.dtype(dtype)), channels, photometric)
