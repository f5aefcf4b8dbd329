"""The attributes of a VL Whole Slide Microscopy Image instance (PS3.3 A.32.8), without its pixels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from microtome.model import OpticalPath
from microtome.testing.srgb import srgb_profile

if TYPE_CHECKING:
    from pydicom.dataset import Dataset

__all__ = ["SOP_CLASS", "Concatenation", "Identity", "Instance", "describe"]

SOP_CLASS = "1.2.840.10008.5.1.4.1.1.77.1.6"
IMPLEMENTATION = "1.2.826.0.1.3680043.8.498.1"

NOW = "20260101"  # fixed: equal arguments, equal bytes


@dataclass(frozen=True)
class Identity:
    """What all instances of one slide have in common.

    Parameters
    ----------
    entropy
        Text from which the UIDs are made.
    study, series
        UIDs that replace the made ones.
    orientation
        Image Orientation (Slide).
    """

    entropy: str
    study: str | None
    series: str | None
    orientation: tuple[float, ...]

    def uid(self, *what: object) -> str:
        """Make the UID of something; the same something has the same UID."""
        from pydicom.uid import generate_uid

        return str(generate_uid(entropy_srcs=[self.entropy, *map(str, what)]))


@dataclass(frozen=True)
class Concatenation:
    """The place of an instance among the parts of a concatenation (PS3.3 C.7.6.16.1.3)."""

    key: str
    number: int
    total: int
    first_frame: int


@dataclass(frozen=True)
class Instance:
    """One file, as far as its header goes.

    Parameters
    ----------
    name
        Tells its UID from those of the other instances.
    number
        Instance Number.
    flavour
        Image Type, value 3: VOLUME, LABEL, OVERVIEW or THUMBNAIL.
    resampled
        Whether the pixels were made from those of another instance.
    shape
        (rows, columns) of the total pixel matrix.
    frame
        Rows and Columns.
    frames
        Number of frames.
    spacing
        (row, column) in mm, or None for no pixel measures at all.
    origin
        (x, y) of the total pixel matrix, in mm.
    z
        Of the first focal plane, in µm.
    planes, z_step
        Number of focal planes, and their distance in mm.
    paths
        Optical paths.
    samples, photometric, bits_stored, dtype
        Of the stored pixels.
    lossy
        (method, ratio) or None.
    sparse
        Whether each frame states its place.
    tiling_stated
        Whether Dimension Organization Type is there.
    part
        The place in a concatenation, or None.
    """

    name: str
    number: int
    flavour: str
    resampled: bool
    shape: tuple[int, int]
    frame: tuple[int, int]
    frames: int
    spacing: tuple[float, float] | None
    origin: tuple[float, float]
    paths: tuple[OpticalPath, ...]
    samples: int
    photometric: str
    lossy: tuple[str, float] | None
    z: float = 0.0
    planes: int = 1
    z_step: float = 0.001
    bits_stored: int = 8
    dtype: str = "uint8"
    sparse: bool = False
    tiling_stated: bool = True
    part: Concatenation | None = None

    @property
    def image_type(self) -> list[str]:
        """The four values of Image Type."""
        return [
            "DERIVED" if self.resampled else "ORIGINAL",
            "PRIMARY",
            self.flavour,
            "RESAMPLED" if self.resampled and self.flavour in ("VOLUME", "THUMBNAIL") else "NONE",
        ]


def _items(*items: dict[str, Any]) -> list[Dataset]:
    """Sequence items from keywords and values."""
    from pydicom.dataset import Dataset

    out = []
    for item in items:
        d = Dataset()
        for keyword, value in item.items():
            setattr(d, keyword, value)
        out.append(d)
    return out


def _code(value: str, scheme: str, meaning: str) -> list[Dataset]:
    return _items({"CodeValue": value, "CodingSchemeDesignator": scheme, "CodeMeaning": meaning})


def _decimal(value: float) -> str:
    return f"{value:.10g}"


def describe(of: Instance, slide: Identity) -> Dataset:
    """Build the data set of one instance, up to and including the shared functional groups.

    The per-frame functional groups and the pixels follow it in the file; see :mod:`microtome.testing.part10`.
    """
    from pydicom.dataset import Dataset

    ds = Dataset()
    ds.SpecificCharacterSet = "ISO_IR 192"
    ds.ImageType = of.image_type
    ds.SOPClassUID = SOP_CLASS
    ds.SOPInstanceUID = slide.uid("instance", of.name)
    ds.StudyDate = ds.SeriesDate = ds.ContentDate = NOW
    ds.StudyTime = ds.SeriesTime = ds.ContentTime = "120000"
    ds.AcquisitionDateTime = NOW + "120000"
    ds.AccessionNumber = ds.ReferringPhysicianName = ""
    ds.Modality = "SM"
    ds.Manufacturer, ds.ManufacturerModelName = "microtome", "microtome.testing"
    ds.DeviceSerialNumber, ds.SoftwareVersions = "0", "1"
    ds.PatientName, ds.PatientID = "Synthetic^Slide", "SYNTHETIC"
    ds.PatientBirthDate = ds.PatientSex = ""
    ds.StudyInstanceUID = slide.study or slide.uid("study")
    ds.SeriesInstanceUID = slide.series or slide.uid("series")
    ds.StudyID, ds.SeriesNumber, ds.InstanceNumber = "1", 1, of.number
    ds.FrameOfReferenceUID, ds.PositionReferenceIndicator = slide.uid("frame of reference"), "SLIDE_CORNER"
    if of.part:
        ds.SOPInstanceUIDOfConcatenationSource = slide.uid("source", of.part.key)
        ds.ConcatenationUID = slide.uid("concatenation", of.part.key)
        ds.InConcatenationNumber, ds.InConcatenationTotalNumber = of.part.number, of.part.total
        ds.ConcatenationFrameOffsetNumber = of.part.first_frame
    _specimen(ds, slide)
    _pixels(ds, of)
    _matrix(ds, of, slide)
    _optics(ds, of)
    _dimensions(ds, of, slide)
    return ds


def _specimen(ds: Dataset, slide: Identity) -> None:
    ds.AcquisitionContextSequence = []
    ds.ContainerIdentifier, ds.IssuerOfTheContainerIdentifierSequence = "SYNTHETIC-1", []
    ds.ContainerTypeCodeSequence = _code("433466003", "SCT", "Microscope slide")
    ds.SpecimenDescriptionSequence = _items(
        {
            "SpecimenIdentifier": "SYNTHETIC-1-A",
            "SpecimenUID": slide.uid("specimen"),
            "IssuerOfTheSpecimenIdentifierSequence": [],
            "SpecimenPreparationSequence": [],
        }
    )


def _pixels(ds: Dataset, of: Instance) -> None:
    ds.SamplesPerPixel, ds.PhotometricInterpretation = of.samples, of.photometric
    if of.samples == 3:
        ds.PlanarConfiguration = 0
    else:
        ds.RescaleIntercept, ds.RescaleSlope, ds.PresentationLUTShape = 0, 1, "IDENTITY"
    ds.NumberOfFrames, ds.Rows, ds.Columns = of.frames, *of.frame
    ds.BitsAllocated = 8 if of.dtype == "uint8" else 16
    ds.BitsStored, ds.HighBit, ds.PixelRepresentation = of.bits_stored, of.bits_stored - 1, int(of.dtype == "int16")
    ds.LossyImageCompression = "01" if of.lossy else "00"
    if of.lossy:
        ds.LossyImageCompressionMethod, ds.LossyImageCompressionRatio = of.lossy[0], f"{of.lossy[1]:.3f}"
    ds.BurnedInAnnotation = "YES" if of.flavour in ("LABEL", "OVERVIEW") else "NO"


def _matrix(ds: Dataset, of: Instance, slide: Identity) -> None:
    """Size and place of the total pixel matrix (PS3.3 C.8.12.4)."""
    ds.TotalPixelMatrixRows, ds.TotalPixelMatrixColumns = of.shape
    origin = {
        "XOffsetInSlideCoordinateSystem": _decimal(of.origin[0]),
        "YOffsetInSlideCoordinateSystem": _decimal(of.origin[1]),
    }
    if of.z is not None:
        origin["ZOffsetInSlideCoordinateSystem"] = _decimal(of.z)
    ds.TotalPixelMatrixOriginSequence = _items(origin)
    ds.ImageOrientationSlide = [_decimal(v) for v in slide.orientation]
    ds.TotalPixelMatrixFocalPlanes = of.planes
    ds.VolumetricProperties, ds.FocusMethod, ds.ExtendedDepthOfField = "VOLUME", "AUTO", "NO"
    ds.SpecimenLabelInImage = "YES" if of.flavour in ("LABEL", "OVERVIEW") else "NO"
    if of.flavour in ("VOLUME", "THUMBNAIL"):
        ds.PyramidUID = slide.uid("pyramid")
    if of.flavour == "LABEL":
        ds.LabelText, ds.BarcodeValue = "Synthetic slide", ""
    shared: dict[str, Any] = {"WholeSlideMicroscopyImageFrameTypeSequence": _items({"FrameType": of.image_type})}
    if of.spacing:
        ds.ImagedVolumeHeight, ds.ImagedVolumeWidth = of.shape[0] * of.spacing[0], of.shape[1] * of.spacing[1]
        ds.ImagedVolumeDepth = 1000 * of.z_step * of.planes  # the one extent that is in micrometres
        measures = {"SliceThickness": _decimal(of.z_step), "PixelSpacing": [_decimal(v) for v in of.spacing]}
        if of.planes > 1:
            measures["SpacingBetweenSlices"] = _decimal(of.z_step)
        shared["PixelMeasuresSequence"] = _items(measures)
    if len(of.paths) == 1:
        shared["OpticalPathIdentificationSequence"] = _items({"OpticalPathIdentifier": of.paths[0].identifier})
    ds.SharedFunctionalGroupsSequence = _items(shared)


def _optics(ds: Dataset, of: Instance) -> None:
    """Describe the optical paths (PS3.3 C.8.12.5)."""
    paths = []
    for path in of.paths:
        item: dict[str, Any] = {
            "OpticalPathIdentifier": path.identifier,
            "OpticalPathDescription": path.description,
            "IlluminationTypeCodeSequence": _code("111744" if path.transmitted else "111743", "DCM", path.illumination),
        }
        if path.wavelength is not None:
            item["IlluminationWaveLength"] = path.wavelength
        else:
            item["IlluminationColorCodeSequence"] = _code("414298005", "SCT", "Full Spectrum")
        if of.samples == 3:
            item["ICCProfile"], item["ColorSpace"] = srgb_profile(), "SRGB"
        paths.append(item)
    ds.OpticalPathSequence = _items(*paths)
    ds.NumberOfOpticalPaths = len(paths)


def _dimensions(ds: Dataset, of: Instance, slide: Identity) -> None:
    """How frames are told apart (PS3.3 C.7.6.17)."""
    organization = slide.uid("dimensions")
    ds.DimensionOrganizationSequence = _items({"DimensionOrganizationUID": organization})
    if of.tiling_stated:
        ds.DimensionOrganizationType = "TILED_SPARSE" if of.sparse else "TILED_FULL"
    if of.sparse:
        plane = 0x0048021A  # Plane Position (Slide) Sequence
        pointers = [(0x00480106, 0x00480207), (0x0040074A, plane), (0x0048021F, plane), (0x0048021E, plane)]
        ds.DimensionIndexSequence = _items(
            *(
                {
                    "DimensionOrganizationUID": organization,
                    "DimensionIndexPointer": attribute,
                    "FunctionalGroupPointer": group,
                }
                for attribute, group in pointers
            )
        )
