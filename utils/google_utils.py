"""Downloads of official weights under the name that this file had in v5.0."""

from utils.downloads import attempt_download

__all__ = ["attempt_download"]
