"""Text from elsewhere: read in its encoding; made safe for a terminal, a table, a file name; addresses without secrets.

Class names, file names and the text of YAML files may come from anybody, and addresses hold passwords. `printable` and
`redact` are called once, where all messages of the project pass (utils/log.py, utils/cli.py), and wherever options are
stored.
"""

import codecs
import hashlib
import re
import reprlib
from collections.abc import Iterable
from unicodedata import category
from urllib.parse import unquote

# What stands before `utils` in the names of modules: "yolov5_soca." where pip installed the wheel, "" in a checkout
PACKAGE = __name__.removesuffix("utils.text")

HIDDEN = "***"
NAME_BYTES = 150  # of a folder or file that has its name from elsewhere; file systems allow 255

# --- from a file ------------------------------------------------------------------------------------------------------

# of UTF-32 first: its mark begins as that of UTF-16 does
_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}


def full_name(c: type) -> str:
    """Returns a class's module and name, those of the project as v6.1 has them: "models.common.Conv"."""
    return f"{c.__module__}.{c.__qualname__}".removeprefix(PACKAGE)


def decode_text(data: bytes, encoding: str = "utf-8", errors: str = "strict") -> str:
    """Returns the text of a file, without its byte order mark; editors of Windows write one.

    encoding: of a file without a mark; a mark says what the encoding is. Raises UnicodeDecodeError, unless `errors`
    says otherwise, and LookupError for an encoding that Python does not know.
    """
    marked = next((name for mark, name in _MARKS.items() if data.startswith(mark)), None)
    return data.decode(marked or encoding, errors)


def is_utf8(text: str) -> bool:
    """Returns whether text can be written as UTF-8. A path cannot where the name of a file has other bytes in it."""
    return text.isascii() or not any("\ud800" <= c <= "\udfff" for c in text)


# --- for a terminal ---------------------------------------------------------------------------------------------------


_JOINERS = "\u200c\u200d"  # inside words of Persian and Hindi, and inside emoji


def printable(text: object, lines: bool = True) -> str:
    """Returns text without characters that steer a terminal: escape sequences, control and bidi characters are shown.

    lines: line feeds and tabs stay; otherwise they are shown as `\\n` and `\\t`, so that a name stays on its line.
    """
    text = str(text)
    if text.isprintable():
        return text
    kept = _JOINERS + ("\n\t" if lines else "")
    return "".join(c if c.isprintable() or c in kept or category(c) == "Zs" else _shown(c) for c in text)


def _shown(character: str) -> str:
    return character.encode("unicode_escape").decode("ascii")


_BRIEF = reprlib.Repr()
_BRIEF.maxlevel, _BRIEF.maxstring, _BRIEF.maxother, _BRIEF.maxlong = 3, 80, 80, 80
_BRIEF.maxlist = _BRIEF.maxtuple = _BRIEF.maxdict = _BRIEF.maxset = 12


def brief(value: object) -> str:
    """Returns a value of a file as Python writes it, at most 80 characters.

    What is long in it is not written out first: a short file can hold the same long text a million times.
    """
    try:
        return _BRIEF.repr(value)[:80]
    except ValueError:  # a whole number of more digits than Python writes
        return f"a {type(value).__name__}"


# --- for a table ------------------------------------------------------------------------------------------------------

_FORMULA = re.compile(r"\s*[=+\-@\uff1d\uff0b\uff0d\uff20]|[\t\r\n]")
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?")


def csv_field(text: str) -> str:
    """Returns text for a field of a CSV file: what a spreadsheet would take for a formula gets an apostrophe.

    Numbers stay as they are.
    """
    return f"'{text}" if _FORMULA.match(text) and not _NUMBER.fullmatch(text) else text


_TEX = {
    "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}", **{sign: f"\\{sign}" for sign in "&%$#_{}"},
}  # fmt: skip


def tex_text(text: str) -> str:
    """Returns text for a LaTeX document, in which the signs of the language stand for themselves."""
    return "".join(_TEX.get(sign, sign) for sign in text)


_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def xml_can_hold(text: str) -> bool:
    """Returns whether XML has all characters of a text: it has no control characters and no surrogates."""
    return not _NOT_XML.search(text)


# --- for a file name --------------------------------------------------------------------------------------------------

_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)  # names of devices, on Windows
_MARKED = re.compile(r".*-[0-9a-f]{8}")


def file_name(text: str) -> str:
    """Returns the name of a file or folder for text from elsewhere; different texts get different names.

    Letters, digits, spaces and `_.()+-` stay. A text that has others, that is too long or that an operating system does
    not allow is changed, and then ends in eight digits of its own.
    """
    name = re.sub(r"[^\w .()+-]", "_", text).strip(". ")
    if (
        name
        and name == text
        and len(name.encode()) <= NAME_BYTES
        and not (_RESERVED.fullmatch(name) or _MARKED.fullmatch(name))
    ):
        return name
    digits = hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:8]
    start = name.encode()[:NAME_BYTES].decode("utf-8", "ignore")
    return f"{start or '_'}-{digits}" if not _RESERVED.fullmatch(start) else f"_{start}-{digits}"


# --- addresses --------------------------------------------------------------------------------------------------------

# lengths are bounded, so that a long text is read once, not once per character
_ADDRESS = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]{0,40}://[^\s<>]*")
_WHOLE = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]{0,40}://.*", re.DOTALL)
_PARAMETER = re.compile(r"([^/?&;#,=\s]{1,200})=([^/&;#\s]*)")
_SECRET_NAME = re.compile(
    r"user|usr|login|pwd|pass|pw|token|key|sig|secret|auth|cred|session|sid|code(?!c)|pin\b|hash|sas|^[pu]$",
    re.IGNORECASE,
)
_PLAIN_VALUE = re.compile(r"[\w.:-]{0,16}")


def redact(text: str, addresses: Iterable[str] = ()) -> str:
    """Returns text in which the addresses have no secrets: `***` stands for user and password, and for parameters.

    A user and a password end at the last @, so that a password may hold `@`, `/` and `:`. The value of a parameter
    stays where it is short and its name does not sound like a secret.

    addresses: whose passwords are hidden too, where the text names them alone, as the errors of libraries do.
    """
    for address in addresses:
        if address:
            text = text.replace(address, redact(address))
        for secret in _secrets(address):
            text = text.replace(secret, HIDDEN)
    if "://" not in text:
        return text
    if _WHOLE.fullmatch(text) and "\n" not in text:
        return _redact_address(text)
    return _ADDRESS.sub(lambda match: _redact_address(match[0]), text)


def _redact_address(address: str) -> str:
    scheme, _, rest = address.partition("://")
    start, has_user, after = rest.rpartition("@")
    if has_user and _is_user(start):
        rest = f"{HIDDEN}@{after}"
    return f"{scheme}://{_PARAMETER.sub(_redact_parameter, rest)}"


def _is_user(start: str) -> bool:
    """Returns whether what stands between :// and the last @ of an address is a user and a password, not a path."""
    if start.startswith("/"):  # of a file: sqlite:////home/me@work/search.db
        return False
    return ":" in start or not re.search(r"[/?#]", start)


def _redact_parameter(match: re.Match) -> str:
    name, value = match[1], match[2]
    plain = _PLAIN_VALUE.fullmatch(value) and not _SECRET_NAME.search(unquote(name))
    return match[0] if plain else f"{name}={HIDDEN}"


def _secrets(address: str) -> list[str]:
    """Returns the passwords and other secrets in an address, as they stand there and decoded, the longest first."""
    rest = address.partition("://")[2]
    start, has_user, _ = rest.rpartition("@")
    found = []
    if has_user and _is_user(start):
        user, _, password = start.partition(":")
        found += [start, password or user]
    found += [m[2] for m in _PARAMETER.finditer(rest) if _redact_parameter(m) != m[0]]
    found += [unquote(secret) for secret in found]
    # of a password with @ or / libraries may name what comes after it
    found += [part for secret in found for sign in ("/", "[@/]") for part in re.split(sign, secret)]
    return sorted({secret for secret in found if len(secret) > 2}, key=len, reverse=True)
