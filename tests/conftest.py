"""Fixtures that every folder of tests may use."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

from deploy.local.certificate import CertificateFiles, make_certificate

# On CI the same examples each time: whether a change lands must not depend on chance.
# Everybody else's runs go on looking for new ones.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> CertificateFiles:
    """A certificate for localhost, and the root that signed it."""
    folder: Path = tmp_path_factory.mktemp("certificate")
    return make_certificate(folder)
