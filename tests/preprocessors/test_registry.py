"""Finding detectors: our own, those of other packages, and what happens when those misbehave."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from controlkit.errors import ControlKitWarning, ParameterError
from controlkit.preprocessors import build, detectors, preprocess, registry

POSTERIZE = """
from dataclasses import dataclass
from controlkit.preprocessors import Detector, option

@dataclass(frozen=True)
class Posterize(Detector):
    name = "posterize"
    family = "color"
    meaning = "the picture in few tones"
    levels: int = option(4, low=2, high=64, unit="tones", meaning="tones per channel")

    def detect(self, photo):
        step = 256 // self.levels
        return photo // step * step
"""


@pytest.fixture(autouse=True)
def fresh_plug_ins() -> Iterator[None]:
    registry._plug_ins.cache_clear()
    yield
    registry._plug_ins.cache_clear()


def install(folder: Path, package: str, name: str, target: str, source: str) -> None:
    """Put a distribution with one detector where Python finds it, as an installer would."""
    (folder / f"{target.split(':')[0]}.py").write_text(source)
    metadata = folder / f"{package}-1.0.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    (metadata / "entry_points.txt").write_text(f"[controlkit.detectors]\n{name} = {target}\n")


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("ck_test_"):
            del sys.modules[name]


def test_our_own_detectors_are_listed_in_order() -> None:
    names = [info.name for info in detectors() if info.owner == "controlkit"]
    assert names[0] == "canny"
    assert len(names) == len(set(names)) == len(registry.BUILT_IN)


def test_a_detector_of_another_package_works_like_ours(site: Path) -> None:
    install(site, "nice-detectors", "posterize", "ck_test_posterize:Posterize", POSTERIZE)
    assert "ck_test_posterize" not in sys.modules
    about = next(info for info in detectors() if info.name == "posterize")
    assert about.owner == "nice-detectors"
    assert about.options[0].default == 4
    result = preprocess(Image.new("RGB", (4, 4), (200, 100, 50)), "posterize", levels=2)
    assert result.getpixel((0, 0)) == (128, 0, 0)
    with pytest.raises(ParameterError, match="Did you mean levels"):
        build("posterize", level=2)


def test_using_one_detector_does_not_import_the_others(site: Path) -> None:
    install(site, "nice-detectors", "posterize", "ck_test_lazy:Posterize", POSTERIZE)
    build("canny")
    assert "ck_test_lazy" not in sys.modules


def test_two_packages_with_one_name_are_an_error_that_names_both(site: Path) -> None:
    install(site, "first", "posterize", "ck_test_one:Posterize", POSTERIZE)
    install(site, "second", "posterize", "ck_test_two:Posterize", POSTERIZE)
    for use in (detectors, lambda: build("posterize")):
        with pytest.raises(ParameterError, match=r"(first and by second|second and by first)"):
            use()
    build("canny")


def test_nobody_can_take_the_name_of_ours(site: Path) -> None:
    install(site, "greedy", "canny", "ck_test_greedy:Posterize", POSTERIZE)
    with pytest.raises(ParameterError, match="provided by controlkit and by greedy"):
        build("canny")


def test_a_broken_package_is_left_out_with_a_warning(site: Path) -> None:
    install(site, "broken", "posterize", "ck_test_broken:Posterize", "raise RuntimeError('no such GPU')")
    with pytest.warns(ControlKitWarning, match=r"'posterize' is left out.*no such GPU"):
        names = [info.name for info in detectors()]
    assert "posterize" not in names
    with pytest.raises(ParameterError, match="broken cannot be imported"):
        build("posterize")


def test_an_entry_that_is_no_detector_is_refused(site: Path) -> None:
    install(site, "odd", "posterize", "ck_test_odd:Posterize", "Posterize = print")
    with pytest.raises(ParameterError, match="needed a subclass of"):
        build("posterize")


@pytest.mark.parametrize("name", [None, 3, "", "canny "])
def test_odd_names_are_refused(name: object) -> None:
    with pytest.raises(ParameterError, match="detector; found"):
        build(name)  # type: ignore[arg-type]
