"""Images of the tissue behind the spots, on data whose image is simulated."""

from __future__ import annotations

import inspect
import logging

import fitted
import numpy as np
import pytest
from matplotlib.collections import EllipseCollection

import gpnsf

SCALE, WIDTH, HEIGHT, DIAMETER = 0.05, 90, 80, 55.0
SPOT_MAPS = ["domains", "feature_maps", "importance", "observed_expected", "spatial_factors"]
OPTIONS = {
    "domains": {},
    "feature_maps": {"features": ["Gene1"]},
    "importance": {"panels": "map"},
    "observed_expected": {"features": "Gene1", "panels": "observed"},
    "spatial_factors": {"factors": 0},
}


def entry(name="hires", *, scale=SCALE, seed=0):
    """What Space Ranger leaves of a slice, with an image of noise."""
    pixels = np.random.default_rng(seed).random((HEIGHT, WIDTH, 3), dtype=np.float32)
    factors = {f"tissue_{name}_scalef": scale, "spot_diameter_fullres": DIAMETER}
    return {"images": {name: pixels}, "scalefactors": factors, "metadata": {}}


@pytest.fixture
def section():
    data = fitted.anndata(n_obs=144, n_genes=20)
    data.obsm["spatial"] += 150.0
    data.obs["gpnsf_domain"] = np.where(np.arange(144) % 2, "a", "b")
    data.uns["spatial"] = {"V1": entry()}
    return data


@pytest.fixture
def slices():
    """Two slices at the same places, each with an image of its own."""
    data = fitted.mudata(n_obs=49, n_slices=2, n_genes=20, n_peaks=20)
    data.obsm["spatial"] = np.tile(data.obsm["spatial"][:49], (2, 1)) + 150.0
    data["rna"].uns["spatial"] = {"slice A": entry(), "slice B": entry(seed=1)}
    return data


def draw(data, name="spatial_factors", **options):
    return getattr(gpnsf.pl, name)(data, show=False, **{**OPTIONS[name], **options})


def discs(ax):
    (found,) = (item for item in ax.collections if isinstance(item, EllipseCollection))
    return found


def in_axes(ax, points):
    """Coordinates as shares of the panel, from its lower left corner."""
    return ax.transAxes.inverted().transform(ax.transData.transform(points))


@pytest.mark.parametrize("name", SPOT_MAPS)
def test_spots_lie_on_the_pixels_of_their_image(section, name):
    ax = draw(section, name)
    (image,) = ax.images
    np.testing.assert_array_equal(
        image.get_array(), section.uns["spatial"]["V1"]["images"]["hires"]
    )
    column, row = section.obsm["spatial"].T * SCALE
    expected = np.column_stack([(column + 0.5) / WIDTH, 1 - (row + 0.5) / HEIGHT])
    np.testing.assert_allclose(in_axes(ax, section.obsm["spatial"]), expected, atol=1e-6)
    np.testing.assert_array_equal(discs(ax).get_offsets(), section.obsm["spatial"])
    np.testing.assert_allclose(discs(ax).get_widths(), DIAMETER)
    assert discs(ax).get_zorder() > image.get_zorder()


def test_the_map_between_the_spots_lies_on_the_image(section):
    data = gpnsf.datasets.tissue(n_obs=64, n_genes=20, n_peaks=20, seed=0)
    options = {"n_factors": 2, "max_steps": 2, "split": "assumed", "progress": False}
    gpnsf.tl.fit(data, init="spot", **options)
    extent = np.ptp(data.obsm["spatial"], axis=0).max()
    data.uns["spatial"] = {"V1": entry(scale=HEIGHT / (1.5 * extent))}
    data.obsm["spatial"] -= data.obsm["spatial"].min(axis=0)
    ax = gpnsf.pl.spatial_map(data, factors=0, show=False, alpha=0.5)
    assert len(ax.images) == 1
    assert ax.get_xlim()[1] == pytest.approx((WIDTH - 0.5) * 1.5 * extent / HEIGHT)
    assert ax.collections[0].get_alpha() == 0.5
    half = (0, 0, extent / 2, extent / 2)
    cropped = gpnsf.pl.spatial_map(data, factors=0, show=False, crop_coord=half)
    assert cropped.collections[0].get_array().count() < ax.collections[0].get_array().count() / 2


def test_pies_lie_on_the_image():
    spots, cells = gpnsf.datasets.mixture(n_obs=64, n_genes=60, n_types=4, n_cells=300, seed=0)
    gpnsf.tl.deconvolve(spots, cells, label_key="cell_type")
    spots.uns["spatial"] = {"V1": entry(scale=HEIGHT / (2 * spots.obsm["spatial"].max()))}
    for kind in ("maps", "pies"):
        axes = gpnsf.pl.proportions(spots, kind=kind, show=False, img_key="hires")
        assert all(len(ax.images) == 1 for ax in np.atleast_1d(axes))


def test_every_map_describes_the_same_arguments(subtests):
    for name in (*SPOT_MAPS, "proportions", "spatial_map"):
        with subtests.test(name=name):
            figure = getattr(gpnsf.pl, name)
            known = inspect.signature(figure).parameters
            for argument in ("library", "img_key", "alpha_img", "crop_coord", "alpha"):
                assert argument in known
                assert f"\n{argument}\n    " in inspect.getdoc(figure)
            assert known["img_key"].default == "auto"


def test_without_an_image_spots_touch(section):
    for data, options in ((section, {"img_key": None}), (fitted.anndata(n_obs=144), {})):
        ax = draw(data, **options)
        assert not ax.images
        assert discs(ax).get_widths()[0] == pytest.approx(100)
        assert ax.yaxis_inverted()


def test_size_and_opacity(section):
    ax = draw(section, size=1.5, alpha=0.5, alpha_img=0.3)
    np.testing.assert_allclose(discs(ax).get_widths(), 1.5 * DIAMETER)
    assert discs(ax).get_alpha() == 0.5
    assert ax.images[0].get_alpha() == 0.3


def test_a_crop_shows_its_part_of_image_and_spots(section):
    left, top, right, bottom = box = (300.0, 200.0, 700.0, 900.0)
    ax = draw(section, crop_coord=box)
    assert ax.get_xlim() == (left, right)
    assert ax.get_ylim() == (bottom, top)
    coords = section.obsm["spatial"]
    inside = ((coords >= box[:2]) & (coords <= box[2:])).all(axis=1)
    np.testing.assert_array_equal(discs(ax).get_offsets(), coords[inside])
    pixels = section.uns["spatial"]["V1"]["images"]["hires"]
    np.testing.assert_array_equal(ax.images[0].get_array(), pixels[10:46, 15:36])
    np.testing.assert_allclose(ax.images[0].get_extent(), [290, 710, 910, 190])
    plain = draw(section, crop_coord=box, img_key=None)
    assert plain.get_xlim() == (left, right)


@pytest.mark.parametrize("holder", ["rna", "atac", "object"])
def test_each_slice_has_its_image(slices, holder):
    entries = slices["rna"].uns.pop("spatial")
    (slices if holder == "object" else slices[holder]).uns["spatial"] = entries
    axes = draw(slices, factors=[0, 1])
    for ax in axes:
        first, second = (image.get_extent() for image in ax.images)
        assert first[1] < second[0]  # side by side
        for k, image in enumerate(ax.images):
            own = discs(ax).get_offsets()[49 * k : 49 * (k + 1)]
            pixel = (own - [image.get_extent()[0], image.get_extent()[3]]) * SCALE - 0.5
            np.testing.assert_allclose(pixel, slices.obsm["spatial"][:49] * SCALE, atol=1e-6)
        assert [text.get_text() for text in ax.texts[1:]] == ["slice A", "slice B"]
    one = draw(slices, library="slice B")
    expected = entries["slice B"]["images"]["hires"]
    np.testing.assert_array_equal(one.images[0].get_array(), expected)


def test_crops_of_several_slices(slices):
    boxes = [(100, 100, 400, 400), (300, 200, 600, 700)]
    ax = draw(slices, crop_coord=boxes)
    for image, (left, top, right, bottom) in zip(ax.images, boxes, strict=True):
        x0, x1, y1, y0 = image.get_extent()
        assert x1 - x0 == pytest.approx(right - left, abs=2 / SCALE)
        assert y1 - y0 == pytest.approx(bottom - top, abs=2 / SCALE)


@pytest.mark.parametrize("img_key", ["auto", "lowres"])
def test_another_resolution_covers_the_same_place(section, img_key):
    section.uns["spatial"]["V1"] = entry("lowres", scale=SCALE / 2)
    ax = draw(section, img_key=img_key)
    assert ax.get_xlim()[1] == pytest.approx((WIDTH - 0.5) / (SCALE / 2))
    np.testing.assert_allclose(discs(ax).get_widths(), DIAMETER)


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((HEIGHT, WIDTH)),
        np.zeros((HEIGHT, WIDTH, 1), np.uint8),
        np.zeros((HEIGHT, WIDTH, 4)),
        np.full((HEIGHT, WIDTH, 3), 200, np.uint16),
    ],
    ids=["grey", "one channel", "transparent", "integers"],
)
def test_kinds_of_images(section, pixels):
    section.uns["spatial"]["V1"]["images"]["hires"] = pixels
    assert draw(section).images[0].get_array().shape == (HEIGHT, WIDTH, 3)


def test_an_image_without_the_size_of_spots_lets_them_touch(section):
    del section.uns["spatial"]["V1"]["scalefactors"]["spot_diameter_fullres"]
    assert discs(draw(section)).get_widths()[0] == pytest.approx(100)


@pytest.mark.broad(1)
@pytest.mark.parametrize("kind", [np.uint8, np.float32])
def test_an_image_that_is_finer_than_the_panel_is_drawn_coarser_at_its_place(section, kind):
    steps = np.arange(2501 * 2000, dtype=np.int64).reshape(2501, 2000, 1) % 7 + 100
    pixels = (np.repeat(steps, 3, axis=2) / (1 if kind is np.uint8 else 255)).astype(kind)
    own = section.uns["spatial"]["V1"]
    own["images"]["hires"], own["scalefactors"]["tissue_hires_scalef"] = pixels, 1.0
    image = draw(section, factors=[0, 1, 2, 3])[0].images[0]
    drawn = image.get_array()
    assert drawn.dtype == kind
    step = 2000 // drawn.shape[1]
    assert step > 1
    np.testing.assert_allclose(drawn[0, 0, 0], pixels[:step, :step, 0].mean(), rtol=0.02)
    left, right, bottom, top = image.get_extent()
    assert (left, top) == (-0.5, -0.5)
    assert right == pytest.approx(drawn.shape[1] * step - 0.5)
    assert bottom == pytest.approx(drawn.shape[0] * step - 0.5)


def test_entries_without_images_are_drawn_plain(subtests, section, caplog):
    for found in ({}, {"V1": {}}, {"V1": {"images": {}}}, "text"):
        with subtests.test(found=found):
            section.uns["spatial"] = found
            with caplog.at_level(logging.WARNING, logger="gpnsf"):
                assert not draw(section).images
            assert not caplog.records


def damage(data, how):
    own = data.uns["spatial"]["V1"]
    if how == "factor":
        del own["scalefactors"]["tissue_hires_scalef"]
    elif how == "zero":
        own["scalefactors"]["tissue_hires_scalef"] = 0.0
    elif how == "shape":
        own["images"]["hires"] = np.zeros((3, 80, 90, 1))
    elif how == "range":
        own["images"]["hires"] = 200 * own["images"]["hires"]


@pytest.mark.parametrize(
    ("how", "error", "says"),
    [
        ("factor", KeyError, r"in uns\['spatial'\]\['V1'\].* got 'tissue_hires_scalef'\. Add it"),
        ("zero", ValueError, r"a number above 0 in .*'tissue_hires_scalef'.*got 0\.0"),
        ("shape", ValueError, r"got shape \(3, 80, 90, 1\)"),
        ("range", ValueError, "real numbers from 0 to 1.*got float32 from .* to 199"),
    ],
)
def test_damaged_entries_are_refused_and_the_remedy_works(section, how, error, says):
    damage(section, how)
    with pytest.raises(error, match=f"(?s){says}.*img_key=None"):
        draw(section)
    assert not draw(section, img_key=None).images


def test_mistakes_are_explained(subtests, section):
    for options, error, says in (
        ({"img_key": "hirez"}, KeyError, "the image to exist .*'hires'.* got 'hirez'"),
        ({"crop_coord": (1, 2, 3)}, ValueError, r"\(left, top, right, bottom\).*got \(1, 2, 3\)"),
        ({"crop_coord": (9, 0, 1, 5)}, ValueError, "left below right"),
        ({"crop_coord": (0, 0, 9, 9)}, ValueError, "spots inside `crop_coord`; got none of 144"),
        ({"size": 0}, ValueError, "`size` to be a finite number above 0"),
        ({"alpha": 2.0}, ValueError, "`alpha`"),
        ({"alpha_img": -1.0}, ValueError, "`alpha_img`"),
    ):
        with subtests.test(options=options), pytest.raises(error, match=says):
            draw(section, **options)


def test_an_image_asked_for_by_name_has_to_be_there(slices):
    plain = fitted.anndata(n_obs=36)
    with pytest.raises(KeyError, match=r"an image 'hires' in uns\['spatial'\]"):
        draw(plain, img_key="hires")
    del slices["rna"].uns["spatial"]["slice B"]
    with pytest.raises(KeyError, match="'slice B'"):
        draw(slices, img_key="hires")


@pytest.mark.parametrize("key", ["auto", "hires"])
def test_several_images_of_a_fit_without_slices(section, key, caplog):
    section.uns["spatial"]["V2"] = entry()
    if key == "hires":
        with pytest.raises(KeyError, match="library_key"):
            draw(section, img_key=key)
    else:
        assert not draw(section).images
        assert "one image" in caplog.text
        assert len(caplog.records) == 1


def test_a_slice_of_another_name_is_told(slices, caplog):
    slices["rna"].uns["spatial"]["slice C"] = slices["rna"].uns["spatial"].pop("slice B")
    assert len(draw(slices).images) == 1
    assert "none for 1 section(s), the first is 'slice B'" in caplog.text


@pytest.mark.parametrize("factor", [0.01, 10])
def test_coordinates_in_other_units_than_the_image_are_told(section, factor, caplog):
    section.obsm["spatial"] *= factor
    draw(section)
    assert "pixels of the full resolution" in caplog.text
    assert len(caplog.records) == 1


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.parametrize(
    ("name", "crop"), [*((name, None) for name in SPOT_MAPS), ("domains", (300, 200, 700, 900))]
)
def test_squidpy_puts_spots_at_the_same_places(section, name, crop):
    squidpy = pytest.importorskip("squidpy")
    section.obs["value"] = section.obsm["X_gpnsf"][:, 0]
    options = {} if crop is None else {"crop_coord": crop}
    theirs = squidpy.pl.spatial_scatter(section, color="value", return_ax=True, **options)
    ours = draw(section, name, **options)
    for ax in (theirs, ours):
        ax.figure.draw_without_rendering()
    circles = next(item for item in theirs.collections if len(item.get_paths()) > 1)
    boxes = [path.get_extents() for path in circles.get_paths()]
    centres = np.array([((box.x0 + box.x1) / 2, (box.y0 + box.y1) / 2) for box in boxes])
    # squidpy cuts images at whole pixels, but not the coordinates that it subtracts
    pixel = 1e-6 if crop is None else 1 / min(ax.images[0].get_array().shape[:2])
    found = in_axes(ours, discs(ours).get_offsets())
    np.testing.assert_allclose(found, in_axes(theirs, centres), atol=pixel)
    radius = np.mean([box.width for box in boxes]) / 2 / SCALE
    assert discs(ours).get_widths().mean() / 2 == pytest.approx(radius, rel=1e-6)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
def test_without_an_image_squidpy_has_the_same_side_up(section):
    squidpy = pytest.importorskip("squidpy")
    del section.uns["spatial"]
    section.obs["value"] = section.obsm["X_gpnsf"][:, 0]
    theirs = squidpy.pl.spatial_scatter(section, color="value", shape=None, return_ax=True)
    assert theirs.yaxis_inverted() == draw(section).yaxis_inverted()
