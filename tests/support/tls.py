"""Certificates of the tests' own: an authority and a leaf for 127.0.0.1, made with trustme."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import trustme

from support.nginx import Certificate


@dataclass(frozen=True)
class TestAuthority:
    """PEM files of an authority and of a server it vouches for."""

    __test__ = False
    ca_file: Path
    server: Certificate


def make_authority(folder: Path) -> TestAuthority:
    """Write the files into a folder."""
    authority = trustme.CA()
    leaf = authority.issue_cert("127.0.0.1", "localhost")
    authority.cert_pem.write_to_path(folder / "ca.pem")
    leaf.private_key_pem.write_to_path(folder / "key.pem")
    for position, blob in enumerate(leaf.cert_chain_pems):
        blob.write_to_path(folder / "cert.pem", append=position > 0)
    return TestAuthority(folder / "ca.pem", Certificate(folder / "cert.pem", folder / "key.pem"))
