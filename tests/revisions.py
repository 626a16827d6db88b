"""A quantizer whose revision was raised, as after a fix that changes its numbers."""

from __future__ import annotations

import dataclasses

import pytest

from bench import registry


def raise_revision(monkeypatch: pytest.MonkeyPatch, quantizer: str) -> None:
    """Raise the revision of ``quantizer`` by one, for the rest of the test."""
    real = registry.get

    def revised(group: str, name: str, where: str = "") -> registry.Entry:
        entry = real(group, name, where)
        raised = (group, name) == ("quantizers", quantizer)
        return dataclasses.replace(entry, revision=entry.revision + 1) if raised else entry

    monkeypatch.setattr(registry, "get", revised)
