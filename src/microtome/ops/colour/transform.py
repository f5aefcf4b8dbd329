"""From the colours of one ICC profile to those of another, by LittleCMS, on arrays.

Two copies of LittleCMS are at hand, and both work outside the GIL. Pillow's keeps transforms that are built, which
takes 2 ms for matrix profiles and 30 ms for tables, but its images have four bytes a pixel, and copying costs a third
of the time. That of imagecodecs works on arrays as they are, half as fast again, but builds its transform in every
call. So large arrays under matrix profiles go to the latter, all else of 8 bit to Pillow; the results are equal.
"""

from __future__ import annotations

import functools
import hashlib
import io
import threading
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, cast, get_args

import numpy as np
import numpy.typing as npt

from microtome.errors import OptionError
from microtome.ops.colour.profiles import check_profile
from microtome.storage.forks import renew_in_forks
from microtome.storage.lru import BytesLru

if TYPE_CHECKING:
    from PIL import ImageCms

__all__ = ["ColourTransform", "Intent"]

Intent = Literal["perceptual", "relative", "saturation", "absolute"]

_INTENTS: tuple[Intent, ...] = get_args(Intent)  # in the order of their numbers, ICC.1:2010, section 7.2.15
_KEPT = 32  # transforms that a process keeps; one of tables takes some 200 kB
_BAND = 1 << 16  # pixels that Pillow is given at a time: they stay in the cache of the processor
_LARGE = 1 << 20  # pixels from which on a transform may be built again
_NO_OPTIMIZE = 0x0100  # cmsFLAGS_NOOPTIMIZE


@dataclass(frozen=True, repr=False)
class ColourTransform:
    """A conversion of RGB pixels from one ICC profile to another.

    It is its two profiles and a name: what LittleCMS builds of them is made in each process when it is first needed,
    and kept. Equal transforms are equal, have one hash, and share what was built. Any threads may call one at once.

    Parameters
    ----------
    source, target
        Bytes of ICC profiles for RGB; see `profile_bytes`. Padding at their ends is dropped.
    intent
        Rendering intent. ``"relative"`` and ``"absolute"`` are the colorimetric ones. Between matrix profiles
        the first three are one. There is no black point compensation beyond what version 4 profiles ask for.

    Raises
    ------
    OptionError
        There is no such intent, a profile is damaged or not for RGB, or the target cannot be converted to (some
        profiles of scanners have one direction only).
    """

    source: bytes
    target: bytes
    intent: Intent = "perceptual"

    def __post_init__(self) -> None:
        if self.intent not in _INTENTS:
            raise OptionError(f"there is no rendering intent {self.intent!r}; there are {', '.join(_INTENTS)}")
        for name in ("source", "target"):
            data = getattr(self, name)
            if not isinstance(data, bytes):
                raise OptionError(f"the {name} profile is given as bytes, not {type(data).__name__}: see profile_bytes")
            object.__setattr__(self, name, check_profile(data, f"the {name} profile"))
        _kept.get(self)

    @functools.cached_property
    def digest(self) -> str:
        """A name for what this does to pixels, the same in every process."""
        parts = hashlib.blake2b(digest_size=16)
        for part in (self.source, self.target, self.intent.encode()):
            parts.update(len(part).to_bytes(8, "big") + part)
        return parts.hexdigest()

    def __repr__(self) -> str:
        sizes = f"{len(self.source):,} bytes -> {len(self.target):,} bytes"
        return f"ColourTransform({sizes}, intent={self.intent!r}, digest={self.digest!r})"

    def __dask_tokenize__(self) -> tuple[str, str]:
        return "microtome.ColourTransform", self.digest

    def __call__(self, pixels: npt.NDArray[Any], out: npt.NDArray[Any] | None = None) -> npt.NDArray[Any]:
        """Return converted pixels.

        Parameters
        ----------
        pixels
            (..., 3) uint8 or uint16 RGB; 16 bit values use the whole range, 65535 is white.
        out
            Where the result goes: an array of the same shape and type, which may be ``pixels`` itself.

        Raises
        ------
        OptionError
            The pixels are not RGB of 8 or 16 bit, or ``out`` does not match them.
        """
        _check_rgb(pixels)
        if out is None:
            out = np.empty(pixels.shape, pixels.dtype)
        elif out.shape != pixels.shape or out.dtype != pixels.dtype:
            raise OptionError(
                f"out is {out.dtype} {out.shape}, and the converted pixels are {pixels.dtype} {pixels.shape}"
            )
        if pixels.size:
            native = pixels.dtype.newbyteorder("=")
            flat = np.ascontiguousarray(pixels, native).reshape(-1, 3)
            if np.may_share_memory(flat, out):
                flat = flat.copy()
            direct = out.flags.c_contiguous and out.dtype.isnative
            result = out.reshape(-1, 3) if direct else np.empty(flat.shape, native)
            self._convert(flat, result)
            if not direct:
                out[...] = result.reshape(out.shape)
        return out

    def _convert(self, flat: npt.NDArray[Any], result: npt.NDArray[Any]) -> None:
        if flat.dtype.itemsize == 2:
            # LittleCMS would put a coarse table in place of the profiles, which is up to 14 of 255 away from them.
            self._convert_whole(flat, result, _NO_OPTIMIZE)
            return
        built = _kept.get(self)
        if built.matrix and len(flat) >= _LARGE:
            self._convert_whole(flat, result, 0)
        else:
            _convert_in_bands(built.transform, flat, result)

    def _convert_whole(self, flat: npt.NDArray[Any], result: npt.NDArray[Any], flags: int) -> None:
        import imagecodecs

        imagecodecs.cms_transform(
            flat[None],
            self.source,
            self.target,
            colorspace="rgb",
            outcolorspace="rgb",
            intent=_INTENTS.index(self.intent),
            flags=flags,
            out=cast(Any, result[None]),  # its stub knows no arrays here
        )


def _check_rgb(pixels: npt.NDArray[Any]) -> None:
    if pixels.ndim == 0 or pixels.shape[-1] != 3:
        raise OptionError(
            f"colour transforms take RGB pixels of shape (..., 3), not {pixels.shape}; channels of one colour each "
            "become RGB by pseudocolour"
        )
    if pixels.dtype.kind != "u" or pixels.dtype.itemsize > 2:
        raise OptionError(f"colour transforms take RGB of 8 or 16 bit (uint8, uint16), not {pixels.dtype}")


def _convert_in_bands(
    transform: ImageCms.ImageCmsTransform, flat: npt.NDArray[np.uint8], result: npt.NDArray[np.uint8]
) -> None:
    from PIL import Image, ImageCms

    for begin in range(0, len(flat), _BAND):
        band = flat[begin : begin + _BAND]
        image = Image.frombuffer("RGB", (len(band), 1), band, "raw", "RGB", 0, 1)
        ImageCms.applyTransform(image, transform, inPlace=True)
        result[begin : begin + _BAND] = np.asarray(image)[0]


@dataclass(frozen=True)
class _Built:
    transform: ImageCms.ImageCmsTransform
    matrix: bool  # both profiles are matrix and curves


def _build(wanted: ColourTransform) -> _Built:
    from PIL import ImageCms

    source, target = (ImageCms.ImageCmsProfile(io.BytesIO(data)) for data in (wanted.source, wanted.target))
    intent = ImageCms.Intent(_INTENTS.index(wanted.intent))
    try:
        transform = ImageCms.buildTransform(source, target, "RGB", "RGB", intent)
    except (ImageCms.PyCMSError, OSError, ValueError) as error:
        raise OptionError(
            f"LittleCMS makes no {wanted.intent} transform of the source profile ({len(wanted.source):,} bytes) and "
            f"the target profile ({len(wanted.target):,} bytes): {error}; one of them is damaged, or the target has "
            "no direction from colours to RGB"
        ) from None
    return _Built(transform, source.profile.is_matrix_shaper and target.profile.is_matrix_shaper)


class _Kept:
    """Built transforms of this process, those used last."""

    def __init__(self, build: Callable[[ColourTransform], _Built]) -> None:
        self.build = build
        self.renew()

    def renew(self) -> None:
        self.lock = threading.Lock()
        self.built: BytesLru[_Built] = BytesLru()

    def get(self, wanted: ColourTransform) -> _Built:
        with self.lock:
            built = self.built.get(wanted.digest)
        if built is None:
            built = self.build(wanted)  # by two threads at once, rarely, rather than one waiting for another
            with self.lock:
                self.built.put(wanted.digest, built, 1, _KEPT)
        return built


_kept = _Kept(_build)
renew_in_forks(_kept)
