"""What a folder's dataset.yaml says about its classes."""

import pytest

from anomalygpt.datasets.class_info import describe, folder_infos, noun_phrase
from anomalygpt.datasets.synthesis import nsa_settings
from anomalygpt.errors import UserError


@pytest.fixture
def parts(tmp_path, write_photo):
    for name in ("gear", "bottle"):
        write_photo(tmp_path / name / "good" / "0.png")

    def write(text):
        (tmp_path / "dataset.yaml").write_text(text, encoding="utf-8")
        return tmp_path

    return write


def test_an_entry_names_and_describes_its_class_and_changes_its_simulation(parts):
    text = """
        classes:
          gear:
            name: {en: gear wheel, zh: 齿轮}
            description: round, with 24 whole teeth.
            nsa: {half_height: [0.03, 0.2], background: [200, 60], label: {softness: 3, midpoint: 7}}
        """
    info = folder_infos(parts(text))["gear"]
    words = noun_phrase("gear", "en", info), describe("gear", "en", info)
    assert words == ("a gear wheel", "round, with 24 whole teeth")
    assert (noun_phrase("gear", "zh", info), describe("gear", "zh", info)) == ("齿轮", describe("gear", "zh"))
    settings = nsa_settings("gear", info.nsa.model_dump(exclude_unset=True))
    assert (settings.half_height, settings.background) == ((0.03, 0.2), (200, 60))
    assert (settings.label.softness, settings.half_width) == (3, nsa_settings("gear").half_width)


def test_what_an_entry_does_not_say_comes_from_the_tables(parts):
    info = folder_infos(parts("classes: {bottle: {nsa: {background: null}}}"))["bottle"]
    assert noun_phrase("bottle", "en", info) == noun_phrase("bottle")
    assert describe("bottle", "en", info) == describe("bottle")
    settings = nsa_settings("bottle", info.nsa.model_dump(exclude_unset=True))
    assert settings.background is None and nsa_settings("bottle").background is not None
    assert settings.resize == nsa_settings("bottle").resize


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("clases: {}", r"unknown key 'clases'; did you mean 'classes'\?"),
        ("classes: {gear: {descripton: x}}", r"classes\.gear: unknown key 'descripton'; did you mean 'description'\?"),
        ("classes: {gear: {nsa: {half_hight: [0, 1]}}}", r"did you mean 'half_height'\?"),
        ("classes: {gear: {nsa: {label: {k: 1}}}}", r"label: unknown key 'k'; expected one of softness, midpoint"),
        ("classes: {gear: {nsa: {half_width: [0.3, 0.1]}}}", r"half_width: the first must not be larger"),
        ("classes: {gear: {nsa: {background: [300, 1]}}}", r"background\.0: .*less than or equal to 255 \(got 300\)"),
        ("classes: {gear: {name: {fr: roue}}}", r"name\.fr"),
        ("classes: {gear: [", "cannot be read as YAML"),
        ("", "classes: Field required"),
        ("classes: {geer: {}}", "no class geer; the classes here are bottle, gear"),
    ],
)
def test_a_wrong_file_is_explained(parts, text, message):
    with pytest.raises(UserError, match=message) as caught:
        folder_infos(parts(text))
    assert "\n" not in str(caught.value)


def test_a_folder_needs_no_file(parts, tmp_path):
    parts("classes: {}")
    assert folder_infos(tmp_path) == {}
    (tmp_path / "dataset.yaml").unlink()
    assert folder_infos(tmp_path) == {}
