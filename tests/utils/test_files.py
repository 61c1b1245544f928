"""Names that come from files stay below their folder; YAML is read in the encoding that its mark says."""

import os
import tracemalloc

import pytest

from utils.files import atomic_write, below, read_at_most, read_yaml, stays_below, within, write_yaml


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
    assert stays_below(name) == (name == "out/a")  # which only a look at the files tells


@pytest.mark.parametrize(
    "name, path",
    [
        ("a.jpg", "set/labels/a.jpg"),
        ("../images/a.jpg", "set/images/a.jpg"),
        ("./x/../a..b", "set/labels/a..b"),
        ("link/../a", "set/labels/a"),  # what is checked is what is opened
        ("{}/set/images/a.jpg", "set/images/a.jpg"),
        ("../../a.jpg", None),
        ("../../setting/a.jpg", None),  # begins as the folder does
        ("../../set", None),
        ("/etc/passwd", None),
        ("", None),
    ],
)
def test_names_in_a_data_set_stay_in_it(tmp_path, name, path):
    root = tmp_path / "set"
    (root / "labels").mkdir(parents=True)
    (root / "labels" / "link").symlink_to(tmp_path)
    if path is None:
        with pytest.raises(ValueError, match=f"must be below {root}, found"):
            within(root, root / "labels", name)
    else:
        assert within(root, root / "labels", name.format(tmp_path)) == str(tmp_path / path)


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-32"])
def test_yaml_of_an_editor_of_windows(tmp_path, encoding):
    (tmp_path / "a.yaml").write_bytes("names:\r\n- 細\r\nnc: 1\r\ntext: |\r\n  a\r\n  b\r\n".encode(encoding))
    assert read_yaml(tmp_path / "a.yaml") == {"names": ["細"], "nc": 1, "text": "a\nb\n"}


def test_names_that_are_not_utf8_can_be_written(tmp_path):
    name = os.fsdecode(b"\xe9.jpg")
    with atomic_write(tmp_path / name, "w") as file:
        file.write(f"細 {name}")
    assert (tmp_path / name).read_bytes() == "細 \\udce9.jpg".encode()
    write_yaml(tmp_path / "a.yaml", {"path": name, "weights": tmp_path / name})
    assert read_yaml(tmp_path / "a.yaml") == {"path": name, "weights": str(tmp_path / name)}


def test_a_small_file_takes_little_memory_whatever_its_maximum(tmp_path):
    path = tmp_path / "small.json"
    path.write_bytes(b"[1]")
    tracemalloc.start()
    try:
        assert read_at_most(path, 1 << 32) == b"[1]"
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()
    with pytest.raises(ValueError, match="has more than 2 bytes"):
        read_at_most(path, 2)
