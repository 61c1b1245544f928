"""Text from elsewhere: on a terminal, in tables, as file names, and addresses without their secrets."""

import csv
import io
import logging
import os
from xml.etree import ElementTree

import pytest
import torch

from utils import cli
from utils.log import LOGGER
from utils.text import brief, csv_field, decode_text, file_name, is_utf8, printable, redact, xml_can_hold


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("plain Ünïcode 検出 \U0001f34e\u3000a\u00a0b", "plain Ünïcode 検出 \U0001f34e\u3000a\u00a0b"),
        ("two\nlines\tand a tab", "two\nlines\tand a tab"),
        ("\x1b]0;PWNED\x07\x1b[2J\rdone", r"\x1b]0;PWNED\x07\x1b[2J\rdone"),
        ("\x9b31m\x00\x7f\x08", r"\x9b31m\x00\x7f\x08"),
        ("gpj.\u202eexe \u2066x", r"gpj.\u202eexe \u2066x"),
        ("a\u2028b\u2029\x85\x0b\x0c", r"a\u2028b\u2029\x85\x0b\x0c"),
        ("lone \udc80", r"lone \udc80"),
        ("می\u200cخواهم \U0001f468\u200d\U0001f469", "می\u200cخواهم \U0001f468\u200d\U0001f469"),
    ],
)
def test_nothing_steers_a_terminal(text, shown):
    assert printable(text) == shown
    assert printable(printable(text)) == shown
    printable(text).encode()  # can be written anywhere


def test_a_name_stays_on_its_line():
    assert printable("a\nerror: b\tc", lines=False) == r"a\nerror: b\tc"


@pytest.mark.parametrize("text", ["", "0 .5\n", "細 \U0001f34e", "\ufeff twice"])
def test_a_byte_order_mark_is_not_part_of_the_text(text):
    marked = "\ufeff" + text
    for encoding in ("utf-8", "utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"):
        assert decode_text(marked.encode(encoding)) == text
        assert decode_text(marked.encode(encoding), "gbk") == text
    assert decode_text("細".encode("gbk"), "gbk") == "細"
    assert decode_text(b"a\xff", errors="surrogateescape") == "a\udcff"
    with pytest.raises(UnicodeDecodeError):
        decode_text(b"a\xff")


def test_names_that_are_not_utf8_are_known():
    assert all(map(is_utf8, ["", "a", "細 \U0001f34e", "\ufeff"]))
    for name in (b"a\xff", b"\xe9.jpg", b"\xd6\xd0"):  # the last in GBK
        assert not is_utf8(os.fsdecode(name))


SECRETS = [
    "rtsp://admin:S3CRET@10.0.0.1:554/live",
    "rtsp://admin:S3CR@ET@host/x",
    "rtsp://admin:S3CRET/slash@host:9/x",
    "rtsp://admin:12/34S3CRET@host/x",
    "rtsp://admin:S3CRET?a#b:c@host/x",
    "mysql+pymysql://u:S3CRET@127.0.0.1/db",
    "https://S3CRETtoken@host/x",
    "http://host/video?user=admin&pwd=S3CRET",
    "http://host/video?channel=1&%70wd=S3CRET",
    "http://host/x#access_token=S3CRET",
    "http://host/user=admin_password=S3CRET_channel=1_stream=0.sdp",
    "https://host/a.zip?X-Amz-Signature=S3CRET&X-Amz-Expires=60",
    "https://host/a?sig=S3CRET",
    "https://host/a?what=averyveryS3CRETlongvalue",
    "postgresql://u@host/db?password=S3CRET",
    "HTTP://U:S3CRET@HOST",
    "rtsp://admin:it's\"S3CRET@host/x",
]


@pytest.mark.parametrize("address", SECRETS)
@pytest.mark.parametrize("form", ["{}", "cannot open {}: no route", "source={}, x=1", "['{}', \"{}\"]", "a\n{}\nb"])
def test_addresses_have_no_secrets(address, form):
    found = redact(form.format(address, address))
    assert "S3CRET" not in found and "ET@" not in found and "***" in found
    assert redact(found) == found
    for end in (" no route", " x=1", "\nb"):
        assert found.endswith(end) == form.endswith(end)


def test_a_long_text_is_read_once():
    """Each of these would take hours, were it read anew from each of its characters."""
    for long in (
        "a" * 300_000,
        "a" * 300_000 + "://",
        "a://" + "b" * 300_000,
        "a://b " * 50_000,
        "x://" + "y=" * 150_000,
    ):
        assert redact(long + " http://u:S3CRET@h").endswith("***@h")


@pytest.mark.parametrize(
    "text",
    [
        "https://github.com/ultralytics/yolov5/releases/download/v6.1/yolov5s.pt",
        "http://127.0.0.1:8080/a%20shot.png?size=1",
        "sqlite:////home/me@work/a:b/search.db",
        "https://host/icon@2x.png",
        "rtsp://10.0.0.1:554/live?channel=2",
        "me@example.com: 3 images",
        "a: b@c",
    ],
)
def test_what_is_no_secret_stays(text):
    assert redact(text) == text


def test_the_passwords_of_an_address_are_hidden_in_the_errors_of_libraries():
    address = "mysql://u:pa%40ss/word@host/db"
    for error in ("Access denied for 'u' (using pa@ss/word)", f"bad url {address!r}", "nonnumeric port: 'word@host'"):
        found = redact(error, [address])
        assert "pa" + "%40ss" not in found and "pa@ss" not in found and "word" not in found


def test_the_start_of_a_value():
    values = [3, "a'b", [1, "b", None], {"a": (1, 2)}, {2}, 2.5, True, list(range(12))]
    assert [brief(value) for value in values] == [repr(value) for value in values]
    text = "x" * 10**6
    assert all(len(brief(v)) <= 80 for v in (text, [text] * 10**6, {text: text}, 10**600, torch.zeros(3000)))
    assert brief(1 << 2**16) == "a int"  # Python writes no whole number so long


def test_every_message_passes_through(capsys, monkeypatch):
    LOGGER.warning("rtsp://u:S3CRET@h/x \x1b[31m")
    with pytest.raises(SystemExit):
        cli.run(lambda _: (_ for _ in ()).throw(ValueError("rtsp://u:S3CRET@h/y \x1b[31m")), cli.Options(), "detect")
    cli.say("class \x1b[31m rtsp://u:S3CRET@h/z")
    out, err = capsys.readouterr()
    assert "S3CRET" not in out + err and "\x1b" not in out + err
    assert all(f"rtsp://***@h/{name}" in out + err for name in "xyz")


def test_a_bar_that_takes_the_logger_over_keeps_its_formatter(capsys):
    from tqdm.contrib.logging import logging_redirect_tqdm

    with logging_redirect_tqdm([LOGGER]):
        LOGGER.log(logging.WARNING, "rtsp://u:S3CRET@h/x \x1b[31m")
    assert r"rtsp://***@h/x \x1b[31m" in "".join(capsys.readouterr())


def test_options_are_shown_and_stored_without_secrets():
    opt = cli.Options(source="rtsp://u:S3 CRET@h/x", weights=["a.pt", "https://S3CRET@h/b.pt"], epochs=3, data=None)
    assert cli.describe("detect", opt) == (
        "detect: source=rtsp://***@h/x, weights=['a.pt', 'https://***@h/b.pt'], epochs=3, data=None"
    )
    assert cli.without_secrets(vars(opt))["weights"] == ["a.pt", "https://***@h/b.pt"]


# --- tables and file names --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["=1+1", "+cmd|' /C calc'!A0", "-1+2", "@SUM(A1)", "\t=1", "\r=1", " =1", "\n=1", "＝1"]
)
def test_formulas_get_an_apostrophe(text):
    assert csv_field(text) == f"'{text}"
    line = io.StringIO()
    csv.writer(line).writerow([csv_field(text)])
    assert next(csv.reader([line.getvalue()]))[0][0] == "'"


@pytest.mark.parametrize("text", ["-1", "+5.5", "-1e-3", "person", "a=b", "", "street.jpg"])
def test_numbers_and_words_stay(text):
    assert csv_field(text) == text


def test_different_texts_are_different_file_names():
    long = "x" * 300
    texts = [
        "N/A",
        "N:A",
        "N_A",
        "50%",
        "50\u00b0",
        "\U0001f34e",
        "\U0001f34c",
        "a.",
        "a",
        ".a",
        "",
        "_",
        long,
        long + "y",
    ]
    texts += ["CON", "con.txt", "_CON", "..", "../../x", "a\x1b[2J", "検" * 200, "lone \udc80", "a\nb", "\x00"]
    texts += [file_name("N/A"), file_name("")]  # what could be taken for another's
    names = [file_name(text) for text in texts]
    assert len({name.lower() for name in names}) == len(texts)
    for name in names:
        assert (
            name.isprintable() and len(name.encode()) <= 200 and not set(name) & set('/\\:*?"<>|') and name.strip(". ")
        )
        assert name.partition(".")[0].upper() not in ("CON", "NUL")
    assert [file_name(text) for text in ("person", "traffic light", "weiß", "検出", "a (b)")] == [
        "person", "traffic light", "weiß", "検出", "a (b)",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("text", "held"), [("a < b & \U0001f34e", True), ("a\x1b", False), ("\x00", False), ("\udc80", False)]
)
def test_what_xml_can_hold(text, held):
    """Against the parser."""
    try:
        root = ElementTree.Element("name")
        root.text = text
        ElementTree.fromstring(ElementTree.tostring(root, encoding="utf-8"))
        read = True
    except (ElementTree.ParseError, UnicodeEncodeError):
        read = False
    assert xml_can_hold(text) == read == held
