"""From the instances in a folder to slides: pyramids of levels, and the images that go with them.

Instances belong together by series, Pyramid UID and geometry. Frame of Reference UID says nothing here: writers exist
that give every instance its own.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from microtome.dicom.instance import Instance
from microtome.dicom.matrix import FrameOrder, Matrix, build_matrix
from microtome.errors import AlternativesWarning, AmbiguousSlideError, OpenError, OptionError
from microtome.model import OpticalPath

__all__ = ["Candidate", "Level", "Plane", "Slide", "build_slide", "find_candidates", "select"]

ASSOCIATED = ("LABEL", "OVERVIEW", "THUMBNAIL")
PathKey = tuple[object, ...]


@dataclass(frozen=True, slots=True)
class Candidate:
    """Instances that form one slide."""

    key: str
    """What ``series=`` accepts."""
    volumes: tuple[Instance, ...]
    associated: tuple[Instance, ...]

    @property
    def members(self) -> tuple[Instance, ...]:
        """Every instance of the slide."""
        return self.volumes + self.associated

    def describe(self) -> str:
        """Return one line for a list of choices."""
        if not self.volumes:
            return f"{self.key}: {len(self.associated)} associated images, no pyramid"
        finest = max(self.volumes, key=lambda i: i.rows * i.columns)
        return f"{self.key}: {finest.rows} x {finest.columns} pixels, {len(self.volumes)} instances"


@dataclass(frozen=True, slots=True, eq=False)
class Plane:
    """Which plane of which matrix shows one focal plane of one optical path."""

    matrix: int
    number: int


@dataclass(frozen=True, slots=True, eq=False)
class Level:
    """One resolution: matrices of one size, stacked.

    Parameters
    ----------
    name
        ``level0``, ``level1``, ..., or the name of an associated image.
    matrices
        What the planes are planes of.
    z
        Focal offsets in µm, ascending; (None,) where none is stated.
    paths
        Optical paths, in the order of the finest level.
    planes
        By (z, path); None where no instance shows it.
    alternatives
        SOP Instance UIDs of instances that show the same planes again, and were not chosen.
    """

    name: str
    matrices: tuple[Matrix, ...]
    z: tuple[float | None, ...]
    paths: tuple[OpticalPath, ...]
    planes: dict[tuple[int, int], Plane]
    alternatives: tuple[str, ...] = ()

    @property
    def head(self) -> Instance:
        """The first instance: its geometry and pixel format are the level's."""
        return self.matrices[0].head

    @property
    def overlapping(self) -> bool:
        """Whether tiles may overlap: where they are not on a grid."""
        return any(not matrix.tiling.aligned for matrix in self.matrices)

    @property
    def instances(self) -> list[Instance]:
        """Every instance that pixels are read from."""
        return [part.instance for matrix in self.matrices for part in matrix.parts]


@dataclass(frozen=True, slots=True, eq=False)
class Slide:
    """A pyramid, finest level first, and its associated images."""

    levels: tuple[Level, ...]
    associated: tuple[Level, ...]
    ignored: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    """(file, reason) of what lies beside the slide and is no part of it."""

    @property
    def images(self) -> dict[str, Level]:
        """Every level and associated image by the path of its node."""
        nodes = {level.name: level for level in self.levels}
        return nodes | {f"associated/{level.name}": level for level in self.associated}


def find_candidates(instances: Iterable[Instance]) -> list[Candidate]:
    """Sort instances into slides, those left out that are neither levels nor associated images."""
    by_series: dict[str, list[Instance]] = {}
    for instance in instances:
        by_series.setdefault(instance.series_uid, []).append(instance)
    found = []
    for series, members in sorted(by_series.items()):
        associated = [i for i in members if i.flavor in ASSOCIATED]
        groups = _pyramids([i for i in members if i.flavor == "VOLUME"])
        for uid, volumes in groups:
            key = series if len(groups) == 1 else uid or f"{series}#{groups.index((uid, volumes)) + 1}"
            own = [a for a in associated if not uid or a.pyramid_uid in ("", uid)]
            found.append(Candidate(key, tuple(volumes), tuple(own)))
        if not groups and associated:
            found.append(Candidate(series, (), tuple(associated)))
    return found


def _pyramids(volumes: list[Instance]) -> list[tuple[str, list[Instance]]]:
    """Split the volumes of a series into pyramids: (Pyramid UID or empty, members)."""
    stated: dict[str, list[Instance]] = {}
    for instance in volumes:
        if instance.pyramid_uid:
            stated.setdefault(instance.pyramid_uid, []).append(instance)
    groups = list(stated.items())
    for instance in sorted((i for i in volumes if not i.pyramid_uid), key=lambda i: (-i.rows * i.columns, i.uri)):
        for _, members in groups:
            if _same_picture(max(members, key=lambda i: i.rows * i.columns), instance):
                members.append(instance)
                break
        else:
            groups.append(("", [instance]))
    return groups


def _same_picture(one: Instance, other: Instance) -> bool:
    """Tell whether two matrices can show the same rectangle: of one shape, up to what rounding to pixels does."""
    fine, coarse = (one, other) if one.rows * one.columns >= other.rows * other.columns else (other, one)
    factor = fine.columns / coarse.columns
    expected = fine.rows / factor
    if abs(coarse.rows - expected) > 1 + expected / coarse.columns + 0.02 * expected:
        return False
    if (fine.rows, fine.columns) == (coarse.rows, coarse.columns) and fine.origin and coarse.origin and fine.spacing:
        apart = max(abs(a - b) for a, b in zip(fine.origin, coarse.origin, strict=True))
        return apart <= 2 * max(fine.spacing.row, fine.spacing.column)
    return True


def select(candidates: Sequence[Candidate], series: str | None, where: str) -> Candidate:
    """Choose the slide to open.

    Parameters
    ----------
    candidates
        The slides that were found.
    series
        Series or pyramid that was asked for, or None.
    where
        Where they were found, for messages.

    Raises
    ------
    AmbiguousSlideError
        There are several, and none was asked for.
    OpenError
        The one asked for is not there.
    """
    if series is not None:
        chosen = [c for c in candidates if c.key == series]
        chosen = chosen or [c for c in candidates if c.volumes and c.volumes[0].series_uid == series]
        if not chosen:
            raise OpenError(f"{where}: no series or pyramid {series} is here; there are:{_list(candidates)}")
    else:
        chosen = [c for c in candidates if c.volumes] or list(candidates)
    if len(chosen) > 1:
        raise AmbiguousSlideError(
            f"{where}: holds {len(chosen)} slides; choose one with series=:{_list(chosen)}",
            tuple(c.key for c in chosen),
        )
    return chosen[0]


def _list(candidates: Sequence[Candidate]) -> str:
    return "".join(f"\n  {c.describe()}" for c in candidates)


def build_slide(
    candidate: Candidate,
    *,
    frame_order: FrameOrder | None = None,
    prefer: Sequence[str] = (),
    ignored: tuple[tuple[str, str], ...] = (),
) -> Slide:
    """Build the pyramid of a candidate.

    Parameters
    ----------
    candidate
        The instances.
    frame_order
        See `build_matrix`.
    prefer
        SOP Instance UIDs to choose where several instances show the same planes.
    ignored
        What was found beside it.
    """
    unknown = set(prefer) - {i.sop_instance_uid for i in candidate.volumes}
    if unknown:
        raise OptionError(f"prefer={', '.join(sorted(unknown))}: no instance of the slide has this SOP Instance UID")
    matrices = [build_matrix(group, frame_order) for group in _concatenations(candidate.volumes)]
    sizes: dict[tuple[int, int], list[Matrix]] = {}
    for matrix in matrices:
        sizes.setdefault((matrix.head.rows, matrix.head.columns), []).append(matrix)
    levels: list[Level] = []
    order: list[PathKey] = []
    for _, members in sorted(sizes.items(), key=lambda item: -item[0][0] * item[0][1]):
        levels.append(_stack(f"level{len(levels)}", members, order, prefer))
    associated = []
    names: dict[str, int] = {}
    for instance in sorted(candidate.associated, key=lambda i: (i.flavor, "DERIVED" in i.image_type, i.uri)):
        name = instance.flavor.lower()
        names[name] = names.get(name, 0) + 1
        if names[name] > 1:
            name = f"{name}{names[name]}"
        associated.append(_stack(name, [build_matrix([instance], frame_order, associated=True)], [], ()))
    return Slide(tuple(levels), tuple(associated), ignored)


def _concatenations(volumes: Sequence[Instance]) -> list[list[Instance]]:
    groups: dict[str, list[Instance]] = {}
    for instance in volumes:
        key = instance.concatenation.uid if instance.concatenation else instance.sop_instance_uid + instance.uri
        groups.setdefault(key, []).append(instance)
    return list(groups.values())


def _path_keys(paths: Iterable[OpticalPath]) -> list[PathKey]:
    """Tell paths apart by what they are, and where that repeats within an instance by their place."""
    keys: list[PathKey] = []
    for path in paths:
        key: PathKey = path.key
        keys.append((*key, sum(k[: len(key)] == key for k in keys)))
    return keys


def _stack(name: str, members: list[Matrix], order: list[PathKey], prefer: Sequence[str]) -> Level:
    """Merge matrices of one size along focal planes and optical paths; ``order`` of paths grows with each level."""

    def rank(matrix: Matrix) -> tuple[bool, bool, bool, str]:
        asked = any(p.instance.sop_instance_uid in prefer for p in matrix.parts)
        head = matrix.head
        return not asked, head.extended_depth_of_field, "DERIVED" in head.image_type and not order, head.uri

    if any(z is not None for m in members for z in m.z):
        # The only plane of an instance that states no Z offset lies where offsets count from.
        members = [replace(m, z=(0.0,)) if m.z == (None,) else m for m in members]
    chosen: list[Matrix] = []
    taken: set[tuple[PathKey, float | None]] = set()
    alternatives: list[Matrix] = []
    for matrix in sorted(members, key=rank):
        keys = _path_keys(matrix.paths)
        slots = {(key, z) for key in keys for z in matrix.z}
        # An image of extended depth of field shows all focal planes at once: it stands in for the stack.
        edf = matrix.head.extended_depth_of_field
        collapsed = any(edf or m.head.extended_depth_of_field for m in chosen) and any(
            k == t[0] for k in keys for t in taken
        )
        if slots & taken or collapsed or (chosen and not _stackable(chosen[0], matrix)):
            alternatives.append(matrix)
        else:
            chosen.append(matrix)
            taken |= slots
    uids = tuple(part.instance.sop_instance_uid for m in alternatives for part in m.parts)
    if alternatives:
        warnings.warn(
            f"{chosen[0].head.uri}: {len(uids)} more instances show the same pixels of {name}; choose one of them "
            f"with prefer=: {', '.join(uids)}",
            AlternativesWarning,
            stacklevel=2,
        )
    chosen.sort(key=lambda m: m.head.uri)
    paths: dict[PathKey, OpticalPath] = {}
    for matrix in chosen:
        for key, path in zip(_path_keys(matrix.paths), matrix.paths, strict=True):
            paths.setdefault(key, path)
    order.extend(k for k in paths if k not in order)
    # Identifiers may differ from level to level where descriptions do not.
    described = [k[1:] for k in order]
    keys = sorted(paths, key=lambda k: min(order.index(k), described.index(k[1:])))
    stated = {z for m in chosen for z in m.z if z is not None}
    z_values: list[float | None] = [*sorted(stated)] if stated else list(chosen[0].z)
    z_index = {z: at for at, z in enumerate(z_values)}
    planes: dict[tuple[int, int], Plane] = {}
    for number, matrix in enumerate(chosen):
        for i, key in enumerate(_path_keys(matrix.paths)):
            for k, z in enumerate(matrix.z):
                at = z_index[z] if stated else k
                planes[at, keys.index(key)] = Plane(number, i * len(matrix.z) + k)
    return Level(name, tuple(chosen), tuple(z_values), tuple(paths[k] for k in keys), planes, uids)


def _stackable(one: Matrix, other: Matrix) -> bool:
    a, b = one.head.format, other.head.format
    # Planes without an offset are told apart by their numbers alone.
    numbered = None in one.z or None in other.z
    return (a.dtype, a.channels) == (b.dtype, b.channels) and (not numbered or one.z == other.z)
