"""The report as a reader sees it: rendered by a real browser, light and dark, wide and narrow."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import pytest
from browser import look, needs_browser, screenshot

pytest.importorskip("matplotlib", reason="matplotlib is not installed (extra 'report')")
pytest.importorskip("jinja2", reason="jinja2 is not installed (extra 'report')")
np = pytest.importorskip("numpy")
from matplotlib.image import imread  # noqa: E402

pytestmark = needs_browser

FIGURES = ["loss", "others", "wire", "shape", "columns", "histograms", "times"]
WIDTH = 1200

# Boxes of the figures' pictures and of the shape figure's names, and how the page stands.
MEASURE = """(() => {
  const box = e => { const r = e.getBoundingClientRect();
                     return [r.left, r.top, r.right, r.bottom].map(x => x + 0) };
  const svgs = Object.fromEntries([...document.querySelectorAll('figure')]
      .map(f => [f.id, box(f.querySelector('svg'))]));
  const names = [...document.querySelectorAll('#shape text')]
      .filter(t => t.textContent.endsWith('.weight')).map(t => [t.textContent, box(t)]);
  const page = document.documentElement;
  return { title: document.title, svgs, names, width: innerWidth, wide: page.scrollWidth,
           height: page.scrollHeight, ink: getComputedStyle(document.body).color,
           background: getComputedStyle(document.body).backgroundColor,
           colours: [...new Set([...document.querySelectorAll('svg text, p, dt, dd, td, th')]
               .map(t => getComputedStyle(t)[t.ownerSVGElement ? 'fill' : 'color']))],
           images: [...document.querySelectorAll('image')].map(i => box(i)) };
})()"""


@pytest.fixture(scope="module", params=[False, True], ids=["light", "dark"])
def view(
    request: pytest.FixtureRequest, report_page: Path
) -> tuple[dict[str, Any], list[str], Any]:
    """What the browser measured, its console, and the picture."""
    measured, console = look(report_page, MEASURE, width=WIDTH, dark=request.param)
    picture = report_page.with_name(f"{request.param}.png")
    height = measured["height"]
    screenshot(report_page, picture, width=WIDTH, height=height, dark=request.param)
    pixels = (255 * imread(picture)[..., :3]).round().astype(int)
    assert pixels.shape == (height, WIDTH, 3)
    return measured | {"dark": request.param}, console, pixels


def rgb(css: str) -> Any:
    return np.array([int(part) for part in css.removeprefix("rgb(").rstrip(")").split(",")])


def test_page_loads_without_a_word_on_the_console(view: Any) -> None:
    measured, console, _ = view
    assert console == []
    assert measured["title"] == "gct report: run.jsonl"


def test_page_follows_the_readers_theme(view: Any) -> None:
    measured, _, pixels = view
    background, ink = rgb(measured["background"]), rgb(measured["ink"])
    assert (background.mean() < 50, ink.mean() < 50) == (measured["dark"], not measured["dark"])
    assert (pixels[2, 2] == background).all()


def test_all_text_can_be_read_on_its_ground(view: Any) -> None:
    measured, _, _ = view
    assert len(measured["colours"]) >= 2  # ink, and the muted one of axes and captions
    background = luminance(rgb(measured["background"]))
    for colour in measured["colours"]:
        low, high = sorted([background, luminance(rgb(colour))])
        # Web Content Accessibility Guidelines 2.2, 1.4.3 (AA).
        assert (high + 0.05) / (low + 0.05) >= 4.5, colour


def luminance(colour: Any) -> float:
    """Relative luminance of an sRGB colour, by the same guidelines."""
    c = colour / 255
    linear = np.where(c <= 0.04045, c / 12.92, ((c + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_every_figure_has_a_size_and_is_inside_the_page(view: Any) -> None:
    measured, _, _ = view
    assert list(measured["svgs"]) == FIGURES
    bottom = 0.0
    for name, (left, top, right, lower) in measured["svgs"].items():
        assert left >= 0, name
        assert right <= WIDTH, name
        assert right - left > 0.8 * WIDTH, name
        assert lower - top > 100, name
        assert top >= bottom, name  # below the one before
        bottom = lower
    # Four heat maps and their colour bars.
    assert len(measured["images"]) == 8
    assert all(right > left and lower > top for left, top, right, lower in measured["images"])


@pytest.mark.parametrize("name", FIGURES)
def test_figure_is_drawn(name: str, view: Any) -> None:
    measured, _, pixels = view
    left, top, right, bottom = (round(edge) for edge in measured["svgs"][name])
    part = pixels[top:bottom, left:right]
    background = rgb(measured["background"])
    drawn = np.abs(part - background).max(axis=-1) > 24
    # Thin curves on an empty ground cover the least, heat maps nearly all.
    assert 0.01 < drawn.mean() < 0.9, f"{drawn.mean():.3f} of {name} is drawn"
    # Something in every third of its width and its height: it is not cut off.
    for third in [*np.array_split(drawn, 3, axis=0), *np.array_split(drawn, 3, axis=1)]:
        assert third.mean() > 0.002


def test_names_of_the_heat_map_stand_apart_and_in_order(view: Any) -> None:
    measured, _, _ = view
    assert [name for name, _ in measured["names"]] == ["0.weight", "3.weight", "4.weight"]
    boxes = [box for _, box in measured["names"]]
    left, *_ = measured["svgs"]["shape"]
    assert all(box[0] >= left for box in boxes)
    for upper, lower in itertools.pairwise(boxes):
        assert upper[3] <= lower[1] + 1  # glyphs' boxes, rounded


def test_narrow_window_scrolls_figures_and_not_the_page(report_page: Path) -> None:
    measured, console = look(report_page, MEASURE, width=560)
    assert console == []
    assert measured["wide"] <= measured["width"] <= 560
