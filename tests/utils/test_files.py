"""Names that come from files stay below their folder."""

import pytest

from utils.files import below


@pytest.mark.parametrize("name", ["a.bin", "sub/a.bin", "./a", "a..b", ".../a", "link/inside"])
def test_names_below(tmp_path, name):
    (tmp_path / "sub").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "sub")
    assert below(tmp_path, name) == tmp_path / name


@pytest.mark.parametrize(
    "name",
    ["", "..", "../a", "sub/../../a", "/etc/passwd", "C:\\a", "C:a", "\\a", "..\\a", "\\\\host\\a", "a\0", "out/a"],
)
def test_names_that_lead_elsewhere(tmp_path, name):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "out").symlink_to(tmp_path)
    with pytest.raises(ValueError, match="must be below"):
        below(folder, name)
