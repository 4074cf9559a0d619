"""Self-signed certificates. Needs the program openssl."""

from __future__ import annotations

import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Certificate", "make_certificate", "make_expired_certificate"]

_AUTHORITY = """\
[ca]
default_ca = test
[test]
database = index.txt
rand_serial = yes
new_certs_dir = .
default_md = sha256
policy = any
x509_extensions = names
[any]
commonName = supplied
[names]
subjectAltName = IP:127.0.0.1
"""


@dataclass(frozen=True)
class Certificate:
    """A certificate, in files."""

    chain: Path
    key: Path

    @property
    def settings(self) -> dict[str, str]:
        """The settings with which the proxy uses it."""
        return {"TLS_CERT_FILE": str(self.chain), "TLS_KEY_FILE": str(self.key)}


def make_certificate(folder: Path, name: str, *more: str, subject: str = "IP:127.0.0.1", days: int = 2) -> Certificate:
    """Make a certificate that is valid for ``days`` from now.

    Args:
        more: options of ``openssl req`` in place of ``-nodes``.
    """
    made = Certificate(folder / f"{name}.pem", folder / f"{name}.key")
    kind = f"req -x509 -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -days {days} -subj /CN=test"
    files = ["-addext", f"subjectAltName={subject}", "-out", str(made.chain), "-keyout", str(made.key)]
    _openssl(folder, *kind.split(), *files, *(more or ("-nodes",)))
    return made


def make_expired_certificate(folder: Path) -> Certificate:
    """Make a certificate that was valid in 2020."""
    made, request = Certificate(folder / "expired.pem", folder / "expired.key"), folder / "expired.csr"
    kind = "req -newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -nodes -subj /CN=test"
    _openssl(folder, *kind.split(), "-out", str(request), "-keyout", str(made.key))
    (folder / "index.txt").touch()
    (folder / "ca.cnf").write_text(_AUTHORITY)
    dates = "-startdate 20200101000000Z -enddate 20201231000000Z"
    files = ["-in", str(request), "-out", str(made.chain), "-keyfile", str(made.key)]
    _openssl(folder, *f"ca -config ca.cnf -batch -notext -selfsign {dates}".split(), *files)
    return made


def _openssl(folder: Path, *arguments: str) -> None:
    program = shutil.which("openssl")
    assert program, "these tests need the program openssl"
    subprocess.run([program, *arguments], check=True, capture_output=True, cwd=folder)
