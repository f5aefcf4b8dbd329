"""DICOM JSON to pydicom data sets: what servers write otherwise than the standard, and what is left out."""

from __future__ import annotations

import base64
import math
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset

from microtome.dicom.json_dataset import dataset_from_json
from microtome.errors import CorruptHeaderError, OptionError


def test_broken_elements_are_left_out():
    good = {
        "00080018": {"vr": "UI", "Value": ["1.2.3"]},
        "00280010": {"vr": "US", "Value": [512]},
        "00280030": {"vr": "DS", "Value": ["0.5", 0.25]},
        "00100010": {"vr": "PN", "Value": [{"Alphabetic": "A^B", "Phonetic": "C^D"}]},
        "00280009": {"vr": "AT", "Value": ["00181063"]},
        "00080008": {"vr": "CS", "Value": ["ORIGINAL", None, "VOLUME"]},
        "00281103": {"vr": "US", "Value": []},
    }
    broken = {
        "00280011": {"vr": "US", "Value": ["many"]},
        "00280012": {"vr": "US", "Value": [1.5]},
        "00280014": {"vr": "US", "Value": [True]},
        "00280031": {"vr": "DS", "Value": ["x", "y"]},
        "0028000A": {"vr": "AT", "Value": ["nothing"]},
        "00080020": 7,
        "00080021": None,
        "00080022": [],
        "00480105": {"vr": "SQ", "Value": ["text"]},
        "00480008": {"vr": "SH", "Value": ["text"]},
        "00282000": {"vr": "OB", "InlineBinary": "?not base64?"},
        "00282002": {"vr": "OB", "Value": [1, 2]},
        "00091001": {"Value": [[1]]},
        "00091002": {},
        "00020010": {"vr": "UI", "Value": ["1.2.840.10008.1.2.1"]},
        "text": {"vr": "UI", "Value": ["1"]},
        "00080050": {"vr": "SH", "Value": [{"Alphabetic": "x"}]},
        "00080016": {"vr": "UI", "Value": [["1"]]},
    }
    items = {"00480100": {"vr": "SQ", "Value": [{**good, **broken}, None, {}]}}
    for attributes in ({**good, **broken}, {**broken, **good, **items}):
        ds = dataset_from_json(attributes, "x")
        assert ds.pop("00480100", None) is None or "00480100" in attributes
        assert ds == Dataset.from_json(good)
        assert ds.Rows == 512
        assert list(ds.PixelSpacing) == [0.5, 0.25]
    ds = dataset_from_json(items, "x")
    first, *rest = ds[0x00480100].value
    assert first == Dataset.from_json(good)
    assert [len(item) for item in rest] == [0, 0]


def test_forms_that_servers_have():
    ds = dataset_from_json(
        {
            "00280010": {"Value": ["512"]},  # no VR
            "00280011": {"vr": "??", "Value": 512.0},  # one that does not exist, no array
            "00280106": {"Value": [-3]},  # US or SS
            "00281201": {"InlineBinary": "AQI="},
            "00480105": {"vr": "UN", "Value": [{"00480106": {"vr": "SH", "Value": ["1"]}}]},
            "00280008": {"vr": "UN", "InlineBinary": base64.b64encode(b"12 ").decode()},
            "00280030": {"vr": "DS", "Value": ["0.5\\0.25"]},
            "00480002": {"vr": "FL", "Value": ["NaN"]},
            "00282000": {"vr": "OB", "InlineBinary": ["AAEC\nAwQF"]},
            "00280100": {"vr": "US", "InlineBinary": "CAA="},
            "00100010": {"vr": "PN", "Value": ["A^B"]},
            "00091001": {"Value": [{"00280010": {"vr": "US", "Value": [1]}}]},
        },
        "x",
    )
    assert (ds.Rows, ds.Columns, ds.SmallestImagePixelValue, ds.NumberOfFrames, ds.BitsAllocated) == (
        512,
        512,
        -3,
        12,
        8,
    )
    assert ds["SmallestImagePixelValue"].VR == "SS"
    assert ds.RedPaletteColorLookupTableData == b"\x01\x02"
    assert ds.OpticalPathSequence[0].OpticalPathIdentifier == "1"
    assert list(ds.PixelSpacing) == [0.5, 0.25]
    assert math.isnan(ds[0x00480002].value)
    assert ds.ICCProfile == bytes(range(6))
    assert ds.PatientName == "A^B"
    assert ds[0x00091001].value[0].Rows == 1


def test_bulk_data():
    asked = []

    def fetch(uri: str) -> bytes:
        asked.append(uri)
        with ThreadPoolExecutor(1) as other:  # no lock is held meanwhile
            other.submit(dataset_from_json, {}, "x").result(timeout=10)
        return uri.encode()

    attributes = {
        "00282000": {"vr": "OB", "BulkDataURI": "icc0"},
        "00281201": {"vr": "OW", "BulkDataURI": "red!"},
        "00281101": {"vr": "US", "BulkDataURI": "abcdef"},
        "00281202": {"vr": "OW", "InlineBinary": "AQI=", "BulkDataURI": "green"},
        "7FE00010": {"vr": "OW", "BulkDataURI": "frames"},
        "52009230": {"vr": "SQ", "BulkDataURI": "groups"},
        "00480105": {
            "vr": "SQ",
            "Value": [{"00282000": {"BulkDataURI": ["icc1"]}}, {"00282000": {"BulkDataURI": "icc0"}}],
        },
    }
    ds = dataset_from_json(attributes, "x")
    assert not ds.ICCProfile
    assert not ds.PixelData
    assert len(ds.PerFrameFunctionalGroupsSequence) == 0
    ds = dataset_from_json(attributes, "x", fetch)
    assert asked == []
    bulk = ("ICCProfile", "00281201", "RedPaletteColorLookupTableDescriptor", "GreenPaletteColorLookupTableData")
    ds = dataset_from_json(attributes, "x", fetch, bulk)
    assert sorted(asked) == ["abcdef", "icc0", "icc1", "red!"]
    assert ds.ICCProfile == b"icc0"
    assert [item.ICCProfile for item in ds.OpticalPathSequence] == [b"icc1", b"icc0"]
    assert ds.RedPaletteColorLookupTableData == b"red!"
    assert ds.RedPaletteColorLookupTableDescriptor == [0x6261, 0x6463, 0x6665]
    assert ds.GreenPaletteColorLookupTableData == b"\x01\x02"
    assert not ds.PixelData
    with pytest.raises(OptionError, match="IccProfile"):
        dataset_from_json(attributes, "x", fetch, ["IccProfile"])

    def fail(uri: str) -> bytes:
        raise ConnectionResetError

    with pytest.raises(ConnectionResetError):
        dataset_from_json(attributes, "x", fail, ["ICCProfile"])


def test_deep_data_sets():
    attributes: dict[str, Any] = {"00282000": {"vr": "OB", "BulkDataURI": "icc"}}
    for _ in range(200):
        attributes = {"00480105": {"vr": "SQ", "Value": [attributes]}}
    with pytest.raises(CorruptHeaderError, match=r"somewhere.*32 deep"):
        dataset_from_json(attributes, "somewhere")
    with pytest.raises(CorruptHeaderError, match=r"somewhere.*32 deep"):
        dataset_from_json(attributes, "somewhere", lambda uri: b"", ["ICCProfile"])


json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["1.2", "AAAA", "12"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["00280010", "Value", "vr"]), inner),
    max_leaves=8,
)
elements = st.fixed_dictionaries(
    {},
    optional={
        "vr": st.sampled_from(["US", "DS", "IS", "SQ", "PN", "AT", "OB", "UN", "UI", "OW", "FD", "XX", 5]),
        "Value": json_values,
        "InlineBinary": json_values,
        "BulkDataURI": json_values,
    },
)
tags = st.sampled_from(["00280010", "00280030", "00480105", "00282000", "00281201", "00100010", "00091001", "00020010"])


@given(st.dictionaries(tags, elements | json_values))
@settings(deadline=None, max_examples=300)
def test_data_sets_of_anything(attributes):
    bulk = ["ICCProfile", "Rows", "OpticalPathSequence"]
    ds = dataset_from_json(attributes, "somewhere", lambda uri: b"\1\2", bulk)
    assert {f"{element.tag:08X}" for element in ds} <= set(attributes)
