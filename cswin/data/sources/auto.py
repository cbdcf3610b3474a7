"""The source that takes whatever layout lies at a path; `recognise.open_source` opens the one that it is."""

from __future__ import annotations

from cswin.data.sources.source import Source


class Auto(Source):
    """A folder with train/<class>/ and val/<class>/ is used in place, everything else is extracted."""

    kind = "auto"
    inputs = {"path": "a folder, an archive or a pattern of files, in any layout that another source reads"}
