"""Stains: against scikit-image, torchstain's results, mixtures whose stains are known, and formulas of the papers."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pytest
from PIL import Image
from skimage import color

from microtome.errors import OptionError
from microtome.ops.stain import (
    REINHARD_TARGET,
    STAIN_TARGET,
    STAINS,
    Deconvolution,
    Macenko,
    Normalization,
    Reinhard,
    StainFit,
    Vahadane,
    compose,
    deconvolve,
    normalize,
    optical_density,
    rgb_of_density,
    stain_vectors,
)

METHODS = (Macenko, Vahadane, Reinhard)


@pytest.fixture(scope="session")
def histology(real: Path) -> np.ndarray:
    """H&E, (300, 500, 3)."""
    return np.asarray(Image.open(real / "photos/stardist_histo.jpg").convert("RGB"))


@pytest.fixture(scope="session")
def frame(real: Path) -> np.ndarray:
    """H&E of another laboratory, (512, 700, 3)."""
    return np.asarray(Image.open(real / "photos/opentile_frame_2048x512.jpg").convert("RGB"))[:, :700]


@pytest.fixture(scope="session")
def section(real: Path) -> np.ndarray:
    """H&E of a third one with much glass, (990, 740, 3)."""
    with openslide.OpenSlide(real / "slides/CMU-1-Small-Region.svs") as slide:
        return np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))[::3, ::3]


def density(rgb: np.ndarray) -> np.ndarray:
    """Optical density by its formula, (n, 3)."""
    return -np.log10(np.maximum(rgb.reshape(-1, 3), 1) / 255.0)


def degrees(a: Any, b: Any) -> float:
    """Angle between two vectors."""
    cosine = np.dot(a, b) / np.linalg.norm(a) / np.linalg.norm(b)
    return float(np.degrees(np.arccos(np.clip(cosine, -1, 1))))


def mixture(stains: np.ndarray, seed: int = 0) -> np.ndarray:
    """Pixels of two stains: some nearly pure, many mixed, some bare."""
    rng = np.random.default_rng(seed)
    pure = np.array([[1.0, 0.0], [0.0, 0.7]])[rng.integers(0, 2, 6000)] * rng.uniform(0.3, 1, (6000, 1))
    amounts = np.concatenate([pure, rng.uniform(0, 0.8, (3000, 2)), np.zeros((1000, 2))])
    return np.rint(255 * 10 ** -(amounts @ stains)).clip(0, 255).astype(np.uint8)


def test_optical_density() -> None:
    ramp = np.repeat(np.arange(256, dtype=np.uint8)[:, None], 3, 1)
    found = optical_density(ramp)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, density(ramp), rtol=1e-6, atol=1e-7)
    assert found[255, 0] == 0
    assert not np.signbit(found).any()
    np.testing.assert_array_equal(rgb_of_density(found)[1:], ramp[1:])


@pytest.mark.parametrize("name", ["H&E", "HED", "H-DAB"])
def test_deconvolution_is_least_squares(name: str, histology: np.ndarray) -> None:
    vectors = np.array(STAINS[name])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    expected = np.linalg.lstsq(vectors.T, density(histology).T, rcond=None)[0].T
    found = deconvolve(histology, name)
    assert found.dtype == np.float32
    assert found.shape == (*histology.shape[:2], len(vectors))
    np.testing.assert_allclose(found.reshape(expected.shape), expected, atol=2e-5)
    np.testing.assert_array_equal(deconvolve(histology[::3, 7:90], name), found[::3, 7:90])


def test_deconvolution_is_that_of_scikit_image(histology: np.ndarray) -> None:
    # Its unit of density is six decades, its vectors are as printed rather than of unit length, and it clips.
    lengths = np.linalg.norm(np.array(STAINS["HED"]), axis=1)
    theirs = color.rgb2hed(histology) * 6 * lengths
    np.testing.assert_allclose(np.maximum(deconvolve(histology, "HED"), 0), theirs, atol=5e-5)
    vectors = np.array([[0.644, 0.716, 0.267], [0.092, 0.954, 0.283], [0.636, 0.001, 0.771]])
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    theirs = color.separate_stains(histology, np.linalg.inv(vectors)) * 6
    np.testing.assert_allclose(np.maximum(deconvolve(histology, vectors), 0), theirs, atol=5e-5)


def test_two_stains_leave_what_is_at_right_angles_to_both(histology: np.ndarray) -> None:
    first, second = (np.array(v) for v in stain_vectors("H&E"))
    third = np.cross(first, second)
    with_residual = deconvolve(histology, [first, second, third])
    np.testing.assert_allclose(deconvolve(histology), with_residual[..., :2], atol=1e-5)


def test_compose_undoes_deconvolution(histology: np.ndarray) -> None:
    assert np.abs(compose(deconvolve(histology, "HED"), "HED").astype(int) - histology).max() <= 1
    amounts = np.array([[0.5, 0.0], [0.0, 0.4], [0.0, 0.0]])
    expected = 255 * 10 ** -(amounts @ np.array(stain_vectors("H&E")))
    np.testing.assert_array_equal(compose(amounts), np.rint(expected))
    with pytest.raises(OptionError, match="of 2 stains"):
        compose(np.zeros((4, 3)))


def test_white_has_no_stain_and_empty_arrays_none() -> None:
    assert not deconvolve(np.full((5, 3), 255, np.uint8), "HED").any()
    assert deconvolve(np.zeros((0, 7, 3), np.uint8)).shape == (0, 7, 2)
    assert np.isfinite(deconvolve(np.zeros((2, 3), np.uint8), "HED")).all()


@pytest.mark.parametrize(
    "stains",
    [
        "H&E2",
        [],
        [[1, 2]],
        [[1, 2, np.nan]],
        [[0, 0, 0], [1, 0, 0]],
        [[1, 2, 3], [2, 4, 6]],
        [[1, 0, 0], [0, 1, 0], [1, 1, 0]],
        [["a", "b", "c"]],
        np.eye(4)[:, :3],
    ],
)
def test_what_are_no_stain_vectors(stains: Any) -> None:
    with pytest.raises(OptionError, match="stain"):
        deconvolve(np.zeros((4, 3), np.uint8), stains)


@pytest.mark.parametrize("pixels", [np.zeros((4, 4), np.uint8), np.zeros((4, 3), np.uint16), np.zeros((4, 3))])
def test_what_is_not_rgb_of_8_bit(pixels: Any) -> None:
    for call in (deconvolve, optical_density, Normalization(STAIN_TARGET), *(m.fit for m in METHODS)):
        with pytest.raises(OptionError, match="8 bit"):
            call(pixels)


# What torchstain 1.4.1 (NumPy, defaults: natural logarithms, light of 240) finds in these pictures.
@pytest.mark.parametrize(
    ("name", "hematoxylin", "eosin", "maxima"),
    [
        ("histology", (0.548, 0.734, 0.401), (0.291, 0.780, 0.553), (1.029, 0.470)),
        ("frame", (0.604, 0.714, 0.355), (0.182, 0.913, 0.365), (1.316, 0.762)),
    ],
)
def test_macenko_finds_what_torchstain_finds(
    name: str, hematoxylin: Any, eosin: Any, maxima: Any, request: pytest.FixtureRequest
) -> None:
    fit = Macenko.fit(request.getfixturevalue(name))
    assert degrees(fit.stains[0], hematoxylin) < 1.5
    assert degrees(fit.stains[1], eosin) < 1.5
    # it takes its maxima of all pixels, and of less light
    assert np.array(fit.maxima) == pytest.approx(maxima, rel=0.12)


@pytest.mark.parametrize("name", ["histology", "frame", "section"])
def test_macenko_is_the_papers_algorithm(name: str, request: pytest.FixtureRequest) -> None:
    rgb = request.getfixturevalue(name)
    od = density(rgb)
    od = od[(od.mean(1) >= 0.15) & rgb.reshape(-1, 3).any(1)]
    plane = np.linalg.svd(od - od.mean(0), full_matrices=False)[2][:2].T
    plane *= np.sign(plane.sum(0))[None]
    angles = np.arctan2(*(od @ plane).T[::-1])
    ends = [plane @ [np.cos(a), np.sin(a)] for a in np.percentile(angles, (1, 99))]
    expected = np.array(sorted(ends, key=lambda v: -v[0]))
    fit = Macenko.fit(rgb)
    np.testing.assert_allclose(fit.stains, expected, atol=1e-4)
    amounts = np.linalg.lstsq(expected.T, od.T, rcond=None)[0]
    np.testing.assert_allclose(fit.maxima, np.percentile(amounts, 99, axis=1), rtol=1e-3)


@pytest.mark.parametrize(("method", "most"), [(Macenko, 2.0), (Vahadane, 4.0)])
@pytest.mark.parametrize(
    "stains", [STAINS["H&E"], ((0.55, 0.74, 0.40), (0.25, 0.80, 0.55)), ((0.80, 0.52, 0.29), (0.13, 0.92, 0.37))]
)
def test_known_stains_are_found(method: Any, most: float, stains: Any) -> None:
    truth = np.array(stains) / np.linalg.norm(stains, axis=1, keepdims=True)
    fit = method.fit(mixture(truth))
    assert degrees(fit.stains[0], truth[0]) < most
    assert degrees(fit.stains[1], truth[1]) < most
    assert np.array(fit.maxima) == pytest.approx([0.99, 0.79], abs=0.12)


def test_vahadane_is_a_minimum_of_its_objective(frame: np.ndarray) -> None:
    # Concentrations by coordinate descent, and the derivative of the objective along turns of either stain.
    od = density(frame)
    od = od[od.mean(1) >= 0.15][::200] * np.log(10)

    def objective(stains: np.ndarray) -> float:
        amounts = np.zeros((len(od), 2))
        for _ in range(300):
            for j in (0, 1):
                rest = od - amounts[:, [1 - j]] * stains[1 - j]
                amounts[:, j] = np.maximum(rest @ stains[j] - 0.1, 0)
        return 0.5 * float(((od - amounts @ stains) ** 2).sum()) + 0.1 * float(amounts.sum())

    pixels = np.rint(255 * np.exp(-od)).astype(np.uint8)
    found = np.array(Vahadane.fit(pixels, density_threshold=0).stains)
    least = objective(found)
    rng = np.random.default_rng(0)
    for _ in range(30):
        turned = np.abs(found + rng.normal(0, 0.03, (2, 3)))
        turned /= np.linalg.norm(turned, axis=1, keepdims=True)
        assert objective(turned) > least


def test_stain_normalization_is_its_formula(histology: np.ndarray) -> None:
    source, target = Macenko.fit(histology), STAIN_TARGET
    amounts = np.linalg.lstsq(np.array(source.stains).T, density(histology).T, rcond=None)[0]
    amounts *= (np.array(target.maxima) / np.array(source.maxima))[:, None]
    exact = np.clip(255 * 10 ** -(amounts.T @ np.array(target.stains)), 0, 255).reshape(histology.shape)
    result = normalize(histology, source)
    assert result.dtype == np.uint8
    assert np.abs(result - exact).max() <= 0.51
    np.testing.assert_array_equal(normalize(histology[::2, 40:90], source), result[::2, 40:90])


def test_reinhard_is_its_formula(histology: np.ndarray, frame: np.ndarray) -> None:
    source, target = Reinhard.fit(histology), Reinhard.fit(frame)
    cones = np.array([[0.3811, 0.5783, 0.0402], [0.1967, 0.7244, 0.0782], [0.0241, 0.1288, 0.8444]])
    axes = np.array([[1, 1, 1], [1, 1, -2], [1, -1, 0]]) / np.sqrt([[3], [6], [2]])
    rgb = histology.reshape(-1, 3)
    tissue = rgb.min(1) <= 223
    lab = np.log(np.maximum(rgb, 1) @ cones.T) @ axes.T
    np.testing.assert_allclose(source.means, lab[tissue].mean(0), rtol=1e-6)
    np.testing.assert_allclose(source.deviations, lab[tissue].std(0), rtol=1e-6)
    moved = (lab - source.means) * (np.array(target.deviations) / source.deviations) + target.means
    exact = np.clip(np.exp(moved @ np.linalg.inv(axes).T) @ np.linalg.inv(cones).T, 0, 255)
    result = normalize(histology, source, target).reshape(-1, 3)
    assert np.abs(result - exact)[tissue].max() <= 0.6
    kept = (result[tissue] > 0).all(1) & (result[tissue] < 255).all(1)
    assert kept.mean() > 0.9
    after = Reinhard.fit(result[tissue])
    np.testing.assert_allclose(after.means, target.means, atol=0.05)
    np.testing.assert_allclose(after.deviations, target.deviations, atol=0.05)


def test_reinhard_of_the_own_colours_changes_nothing(section: np.ndarray) -> None:
    fit = Reinhard.fit(section)
    assert np.abs(normalize(section, fit, fit).astype(int) - section).max() <= 1


@pytest.mark.parametrize("method", [Macenko, Vahadane])
def test_slides_look_alike_afterwards(
    method: Any, histology: np.ndarray, frame: np.ndarray, section: np.ndarray
) -> None:
    for rgb in (histology, frame, section):
        fit = method.fit(rgb)
        stained = normalize(rgb, fit)[optical_density(rgb).mean(-1) >= 0.15]
        amounts = deconvolve(stained, STAIN_TARGET.stains)
        np.testing.assert_allclose(np.percentile(amounts, 99, axis=0), STAIN_TARGET.maxima, atol=0.02)
        if method is Macenko:  # linear maps keep the order of directions, so the extremes are those of the target
            again = Macenko.fit(stained, density_threshold=0.02)
            for found, wanted in zip(again.stains, STAIN_TARGET.stains, strict=True):
                assert degrees(found, wanted) < 2


@pytest.mark.parametrize("method", METHODS)
def test_white_stays_white(method: Any, histology: np.ndarray, section: np.ndarray) -> None:
    white = np.full((70_000, 3), 255, np.uint8)
    for rgb in (histology, section):
        assert (normalize(white, method.fit(rgb)) == 255).all()
    glass = section[section.min(-1) >= 240]
    assert len(glass) > 50_000
    changed = normalize(glass, method.fit(section))
    assert changed.mean() > 240
    assert np.abs(changed.mean(0) - glass.mean(0)).max() < 15


def of_one_kind(kind: str) -> np.ndarray:
    rng = np.random.default_rng(1)
    return {
        "white": np.full((5000, 3), 255, np.uint8),
        "black": np.zeros((5000, 3), np.uint8),
        "one colour": np.full((5000, 3), (180, 90, 150), np.uint8),
        "two colours": np.array([[180, 90, 150], [90, 60, 140]], np.uint8)[rng.integers(0, 2, 5000)],
        "greys": np.repeat(rng.integers(20, 200, (5000, 1), dtype=np.uint8), 3, 1),
        "few": rng.integers(0, 200, (99, 3), dtype=np.uint8),
        "none": np.zeros((0, 3), np.uint8),
        "glass": rng.integers(236, 256, (5000, 3), dtype=np.uint8),
    }[kind]


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("kind", ["white", "black", "one colour", "greys", "few", "none", "glass"])
def test_what_is_no_tissue_is_refused(method: Any, kind: str) -> None:
    says = "not enough tissue pixels" if kind in ("white", "black", "few", "none", "glass") else "one"
    with pytest.raises(OptionError, match=says):
        method.fit(of_one_kind(kind))


@pytest.mark.parametrize("method", METHODS)
def test_anything_gives_numbers_or_an_error(method: Any) -> None:
    rng = np.random.default_rng(9)
    everything = rng.integers(0, 256, (40_000, 3), dtype=np.uint8)
    fitted = 0
    for scale, floor in ((256, 0), (40, 0), (3, 0), (2, 90), (100, 120), (6, 200)):
        pixels = np.concatenate([rng.integers(floor, floor + scale, (2000, 3)), np.full((500, 3), 255)]).astype(
            np.uint8
        )
        try:
            fit = method.fit(pixels)
        except OptionError:
            continue
        fitted += 1
        assert all(np.isfinite(np.ravel(v)).all() for v in vars(fit).values())
        result = normalize(everything, fit)  # warnings, as of overflows, are errors here
        assert result.shape == everything.shape
    assert fitted


def test_two_colours_span_no_plane_of_stains() -> None:
    with pytest.raises(OptionError, match="one or two colours"):
        Macenko.fit(of_one_kind("two colours"))


def test_fits_travel_small_and_are_the_same_again(histology: np.ndarray, frame: np.ndarray) -> None:
    for method in METHODS:
        fit = method.fit(histology)
        assert method.fit(histology.copy()) == fit
        call = Normalization(fit, method.fit(frame))
        again = pickle.loads(pickle.dumps(call))
        assert again == call
        assert hash(again) == hash(call)
        assert len(pickle.dumps(call)) < 1000
        np.testing.assert_array_equal(again(histology), call(histology))
    call = Deconvolution(STAINS["HED"])
    assert pickle.loads(pickle.dumps(call)) == call
    assert len(pickle.dumps(call)) < 1000


def test_fits_that_do_not_go_together(histology: np.ndarray) -> None:
    stains, colours = Macenko.fit(histology), Reinhard.fit(histology)
    assert Normalization(stains).target == STAIN_TARGET
    assert Normalization(colours).target == REINHARD_TARGET
    assert Normalization(stains, Vahadane.fit(histology))(histology).shape == histology.shape
    for source, target in ((stains, colours), (colours, stains), (stains, "H&E"), ("H&E", None)):
        with pytest.raises(OptionError):
            Normalization(source, target)  # type: ignore[arg-type]


def test_parameters_out_of_range(histology: np.ndarray) -> None:
    with pytest.raises(OptionError, match="angular_percentile"):
        Macenko.fit(histology, angular_percentile=50)
    with pytest.raises(OptionError, match="sparsity"):
        Vahadane.fit(histology, sparsity=-1)
    with pytest.raises(OptionError, match="not enough tissue pixels"):
        Macenko.fit(histology, density_threshold=2.5)
    with pytest.raises(OptionError, match="maxima"):
        StainFit(STAIN_TARGET.stains, (1.0, 0.0))
    with pytest.raises(OptionError, match="deviations"):
        Reinhard((8.0, 0.0, 0.0), (0.5, float("nan"), 0.1))
