"""The identity of a stage's computation: what a saved state must match to be continued."""

from __future__ import annotations

from typing import Any

from cswin.checkpoint import file_sha256
from cswin.config.resolve import StageConfig
from cswin.provenance import versions

VERSIONS = ("mindspore", "numpy", "pillow", "simplejpeg", "numba")  # packages that compute batches and steps
REVISION = 3  # of this package's own computation: raise it whenever a configuration gives other batches or steps than before
CODE = ("versions", "revision")


def fingerprint(config: StageConfig, manifest_hash: str, input_checkpoint=None) -> dict[str, Any]:
    """Everything that affects the stage's result. The run's name and section `runtime` do not."""
    return {
        "config": config.model_dump(mode="json", exclude={"run"}),
        "manifest": manifest_hash,
        "input_checkpoint": file_sha256(input_checkpoint) if input_checkpoint else None,
        **installed_code(),
    }


def installed_code() -> dict[str, Any]:
    """The part of a fingerprint that does not come from the user: the versions of the code."""
    found = versions()
    return {"revision": REVISION, "versions": {name: found.get(name) for name in VERSIONS}}


def code_of(identity: dict[str, Any]) -> dict[str, Any]:
    """The versions of the code in a fingerprint; None for keys that an older fingerprint does not have."""
    return {name: identity.get(name) for name in CODE}


def differences(saved: Any, wanted: Any, prefix: str = "") -> list[str]:
    """A line 'key: was value, is now value' for every leaf that differs."""
    if isinstance(saved, dict) and isinstance(wanted, dict):
        lines = []
        for key in [*wanted, *(k for k in saved if k not in wanted)]:
            lines += differences(saved.get(key), wanted.get(key), f"{prefix}.{key}" if prefix else str(key))
        return lines
    return [] if saved == wanted else [f"{prefix}: was {saved!r}, is now {wanted!r}"]
