from __future__ import annotations

import ssl
from pathlib import Path

import pytest

from tarmill_operator.certificates import make_certificates

HOSTS = ["digits-0a1b2c3d-r1", "digits-0a1b2c3d-r1.team.svc", "digits-0a1b2c3d-r1.team.svc.cluster.local"]


def context(folder: Path, files: dict[str, str], purpose: ssl.Purpose) -> ssl.SSLContext:
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / name).write_text(text)
    made = ssl.create_default_context(purpose, cafile=str(folder / "ca.crt"))
    made.verify_mode = ssl.CERT_REQUIRED
    made.load_cert_chain(folder / "tls.crt", folder / "tls.key")
    return made


def shake_hands(client: ssl.SSLContext, server: ssl.SSLContext, host: str) -> None:
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=host),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].version() is not None
    assert ends[1].getpeercert() != {}


@pytest.mark.parametrize("host", HOSTS)
def test_pods_of_a_run_trust_each_other_by_every_name_of_the_scheduler(tmp_path: Path, host: str) -> None:
    files = make_certificates(HOSTS)
    client = context(tmp_path / "a", files, ssl.Purpose.SERVER_AUTH)
    shake_hands(client, context(tmp_path / "a", files, ssl.Purpose.CLIENT_AUTH), host)


def test_pods_of_another_run_are_trusted_by_neither_side(tmp_path: Path) -> None:
    client = context(tmp_path / "a", make_certificates(HOSTS), ssl.Purpose.SERVER_AUTH)
    server = context(tmp_path / "b", make_certificates(HOSTS), ssl.Purpose.CLIENT_AUTH)
    with pytest.raises(ssl.SSLCertVerificationError):
        shake_hands(client, server, HOSTS[0])
    client.check_hostname, client.verify_mode = False, ssl.CERT_NONE
    with pytest.raises(ssl.SSLError):
        shake_hands(client, server, HOSTS[0])


def test_a_certificate_of_the_run_can_sign_no_other() -> None:
    from cryptography import x509

    certificate = x509.load_pem_x509_certificate(make_certificates(HOSTS)["tls.crt"].encode())
    assert certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.ca is False
