"""Fixtures that every folder of tests may use."""

from pathlib import Path

import pytest

from deploy.local.certificate import CertificateFiles, make_certificate


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    """A certificate for localhost, and the root that signed it."""
    folder: Path = tmp_path_factory.mktemp("certificate")
    return make_certificate(folder)
