"""The bytes of one frame become pixels: :class:`FrameDecoder`."""

from microtome.dicom.decoding.decoder import FrameDecoder

__all__ = ["FrameDecoder"]
