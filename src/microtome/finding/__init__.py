"""Which slides there are: on a DICOMweb server by a search, in a bucket or a folder by the headers of its files."""

from microtome.finding.find import find_slides

__all__ = ["find_slides"]
