"""Faults in the files of a data set: what is wrong, in which file and line."""

from dataclasses import dataclass, replace

# what a fault can be, in the order in which a file is read
FAULT_KINDS = (
    "image",  # the image cannot be read
    "odd",  # the image is unusual, and is read in the way that the words say
    "size",  # the labels were made for an image of another size
    "format",  # labels that cannot be read
    "class",  # a class that does not exist
    "range",  # a number that is out of its range
    "outline",  # a polygon of fewer than three corners
    "box",  # a box without area, or outside its image
    "cut",  # a box that reaches over the edge of its image
    "duplicate",  # a label that repeats another
    "stray",  # a label of an image that is not listed
    "difficult",  # an object that is marked as difficult or as a crowd, and so left out as the YAML says
)


@dataclass(frozen=True)
class Fault:
    """One fault. One that makes its image unusable ends the reading of it: the image is left out."""

    kind: str  # one of FAULT_KINDS
    file: str
    words: str  # what is wrong; where a file holds many labels, these begin with the label's name there
    line: int | None = None  # of a text file, from 1
    left_out: bool = False  # the image was left out because of it

    def __post_init__(self):
        assert self.kind in FAULT_KINDS, self.kind

    def __str__(self) -> str:
        where = self.file if self.line is None else f"{self.file}:{self.line}"
        return f"{where}: {self.words}{'; the image is left out' if self.left_out else ''}"


class FaultError(ValueError):
    """A fault that makes a file unusable."""

    def __init__(self, fault: Fault | str):  # text when torch raises it again in the name of a worker process
        super().__init__(str(fault))
        self.fault = fault

    def leaving_out(self) -> Fault:
        """Returns the fault, marked as the reason why its image is left out."""
        return replace(self.fault, left_out=True)


class UnknownClassError(ValueError):
    """A class that the data set YAML does not name: a fault of the YAML, not of the image where it is met."""


@dataclass(frozen=True)
class Location:
    """A place in a file, where faults are found."""

    file: str
    row: str = ""  # the label's name there, such as "annotation 7"
    line: int | None = None

    def __str__(self) -> str:
        return f"{self.file}: {self.row}" if self.row else self.file

    def fault(self, kind: str, words: str) -> Fault:
        """Makes a fault at this place."""
        return Fault(kind, self.file, f"{self.row}: {words}" if self.row else words, self.line)

    def error(self, kind: str, words: str) -> FaultError:
        """Makes an error of a fault at this place, to be raised."""
        return FaultError(self.fault(kind, words))
