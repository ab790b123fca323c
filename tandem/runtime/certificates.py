"""TLS in this process: the server's certificate, and the authority of its clients', read again when their files change.

grpcio asks for them before each handshake. Files that are no pair, as in the moment in which they are replaced one
after the other, change nothing: the ones before stay in force, and the next handshake looks again.
"""

import ssl
from pathlib import Path

import grpc
from prometheus_client import Counter

from tandem.runtime.settings import SettingsError, TlsSettings
from tandem.runtime.telemetry import log

READS = Counter(
    "tandem_certificates_read_total", "Times that the files of certificates had changed, by outcome", ["outcome"]
)

_Stamp = tuple[tuple[int, int, int] | None, ...]


class Certificates:
    """Of one server. credentials: for its port."""

    def __init__(self, settings: TlsSettings) -> None:
        """Raises SettingsError: grpcio would say of a bad certificate what it says of a port in use."""
        self._settings = settings
        self._files = [it for it in (settings.certificate_file, settings.key_file, settings.client_ca_file) if it]
        self._stamp = self._stamps()
        self._failed: _Stamp | None = None
        self._configuration = self._read()
        self.credentials = grpc.dynamic_ssl_server_credentials(
            self._configuration, self._newest, require_client_authentication=settings.client_ca_file is not None
        )

    def _newest(self) -> grpc.ServerCertificateConfiguration:
        """Called before each handshake, on a thread of grpcio's."""
        stamp = self._stamps()
        if stamp in (self._stamp, self._failed):
            return self._configuration
        try:
            configuration = self._read()
        except SettingsError as error:
            self._failed = stamp
            READS.labels("failed").inc()
            log.error("the new certificates cannot be used; those before stay", error=str(error))
            return self._configuration
        self._stamp, self._failed, self._configuration = stamp, None, configuration
        READS.labels("read").inc()
        log.info("the certificates were replaced")
        return configuration

    def _stamps(self) -> _Stamp:
        """By which it is seen that a file has changed: None for one that is not there."""
        return tuple(map(_stamp_of, self._files))

    def _read(self) -> grpc.ServerCertificateConfiguration:
        """Raises SettingsError."""
        tls = self._settings
        try:
            pair = (tls.key_file.read_bytes(), tls.certificate_file.read_bytes())
            client_ca = tls.client_ca_file.read_bytes() if tls.client_ca_file else None
        except OSError as error:
            raise SettingsError(f"tls: {error}") from error
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        try:
            # Without the password OpenSSL would ask the terminal for one.
            context.load_cert_chain(tls.certificate_file, tls.key_file, password=lambda: "")
        except OSError as error:
            raise SettingsError(f"tls: {tls.certificate_file} and {tls.key_file} are no pair: {error}") from error
        try:
            if tls.client_ca_file:
                context.load_verify_locations(tls.client_ca_file)
        except OSError as error:
            raise SettingsError(f"tls: {tls.client_ca_file} is no certificate: {error}") from error
        return grpc.ssl_server_certificate_configuration([pair], client_ca)


def _stamp_of(file: Path) -> tuple[int, int, int] | None:
    try:
        it = file.stat()
    except OSError:
        return None
    return it.st_mtime_ns, it.st_ino, it.st_size
