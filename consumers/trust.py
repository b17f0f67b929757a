"""Whether this client and a broker trust each other: TLS, the login, and what their failures mean to an operator."""

from __future__ import annotations

import logging
import ssl
from collections.abc import Mapping
from typing import Any

from consumers.errors import BrokerUnavailable, ConsumersError, NotAuthorized

_HANG_UPS = 4
"""So many in a row are no accident; kafka-python has made them within two seconds."""
_TLS_ALERT = 0x1503
"""How the answer of a TLS port begins, which kafka-python takes for the length of a message."""
_EXPIRED, _NOT_YET_VALID = 10, 9
"""OpenSSL's numbers."""


class Secret(str):
    """A text that is never shown: libraries that encode or join it get it, logs and dumps do not.

    Examples
    --------
    >>> password = Secret("hunter2")
    >>> {"sasl_plain_password": password}, f"{password}", password.encode()
    ({'sasl_plain_password': '***'}, '***', b'hunter2')
    """

    __slots__ = ()

    def __repr__(self) -> str:
        return repr(str(self))

    def __str__(self) -> str:
        return "***"


def who(connection: Mapping[str, Any]) -> str:
    """Name whom a connection logs in as, for a message."""
    protocol = connection.get("security_protocol", "PLAINTEXT")
    if protocol.startswith("SASL"):
        if connection.get("sasl_mechanism") == "OAUTHBEARER":
            client = getattr(connection.get("sasl_oauth_token_provider"), "client_id", None)
            return f"client {client!r}" if client else "the owner of the token"
        return f"user {connection.get('sasl_plain_username')!r}"
    if protocol == "SSL" and connection.get("ssl_certfile"):
        return f"the owner of the certificate {connection['ssl_certfile']}"
    return "the user ANONYMOUS"


def tls_context(connection: Mapping[str, Any]) -> ssl.SSLContext:
    """Return what kafka-python makes of the ``ssl_…`` settings, made once and here, where their errors can be said.

    Differs from it: a key that is locked and has no password is an error; OpenSSL would ask for it on the terminal.

    Raises
    ------
    NotAuthorized
        If a file cannot be read, holds nothing that is needed, or the key and its password do not fit.
    """
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = connection.get("ssl_check_hostname", True)
    ca, certificate, key = (connection.get(name) for name in ("ssl_cafile", "ssl_certfile", "ssl_keyfile"))
    try:
        if ca:
            context.load_verify_locations(ca)
        else:
            context.load_default_certs()
    except OSError as error:
        raise NotAuthorized(f"kafka.ssl_cafile: {ca} holds no certificates of CAs in PEM: {error}") from error
    try:
        if certificate:
            password = (connection.get("ssl_password") or "").encode()
            context.load_cert_chain(certificate, key, lambda: password)
    except OSError as error:
        raise NotAuthorized(
            f"kafka.ssl_certfile, kafka.ssl_keyfile: {certificate} and {key or certificate} are no certificate with "
            f"its key in PEM, or kafka.ssl_password does not unlock the key: {error}"
        ) from error
    return context


class Attempts:
    """What came of the attempts to reach a broker, and whether more of them can help.

    Parameters
    ----------
    where
        The brokers, for messages.

    Attributes
    ----------
    last
        Why the last one failed; None before the first failure.
    refusal
        Why no further one can help; None as long as one may.
    """

    def __init__(self, connection: Mapping[str, Any], *, where: str) -> None:
        self._connection = connection
        self._where = where
        self._n_hung_up = 0
        self.last: Exception | None = None
        self.refusal: ConsumersError | None = None

    def note(self, error: Exception) -> None:
        """Note that one failed."""
        self.last = error
        hung_up = _hung_up(error, self._connection)
        self._n_hung_up = self._n_hung_up + 1 if hung_up else 0
        refusal = _refusal(error, self._connection)
        if refusal is None and hung_up and self._n_hung_up >= _HANG_UPS:
            refusal = BrokerUnavailable(hung_up)
        if refusal is not None and self.refusal is None:
            self.refusal = self._said(refusal, error)

    @property
    def outcome(self) -> ConsumersError | None:
        """Why, when time is over: the refusal, or that the broker hung up; None if neither is known."""
        hung_up = _hung_up(self.last, self._connection) if self.last is not None else None
        if self.refusal is None and self.last is not None and hung_up:
            return self._said(BrokerUnavailable(hung_up), self.last)
        return self.refusal

    def _said(self, refusal: ConsumersError, error: Exception) -> ConsumersError:
        said = type(refusal)(f"{self._where}: {refusal}")
        said.__cause__ = error
        return said


def _refusal(error: Exception, connection: Mapping[str, Any]) -> ConsumersError | None:
    """Return a failure to connect in our words, None if another attempt may fare better."""
    from kafka import errors

    protocol, mechanism = connection.get("security_protocol", "PLAINTEXT"), connection.get("sasl_mechanism")
    tls = _tls_error(error)
    if isinstance(error.__cause__, ConsumersError):  # of a token, see consumers.oauth
        return error.__cause__
    if isinstance(error, errors.SaslAuthenticationFailedError):
        keys = "sasl_oauthbearer_" if mechanism == "OAUTHBEARER" else "sasl_plain_"
        said = str(error.args[0] if error.args else "").removeprefix("SaslAuthenticationFailedError: ")
        return NotAuthorized(
            f"the broker refuses {who(connection)} by {mechanism}: {said}; check the credentials and their rights "
            f"(kafka.{keys}…)"
        )
    if isinstance(error, errors.UnsupportedSaslMechanismError):
        return NotAuthorized(
            f"kafka.sasl_mechanism: is {mechanism}, which this port of the broker does not take; "
            "set one of its sasl.enabled.mechanisms"
        )
    if isinstance(error, errors.IllegalSaslStateError):
        return NotAuthorized(
            f"kafka.security_protocol: is {protocol}, but this port of the broker takes no login; set "
            f"{protocol.removeprefix('SASL_')}, or the port of a listener with SASL"
        )
    if isinstance(error, errors.InvalidReceiveError) and _is_alert(error) and not protocol.endswith("SSL"):
        return NotAuthorized(
            f"kafka.security_protocol: is {protocol}, but this port of the broker speaks TLS; set "
            f"{'SASL_SSL' if protocol.startswith('SASL') else 'SSL or SASL_SSL'} and kafka.ssl_cafile"
        )
    if isinstance(tls, ssl.SSLCertVerificationError):
        return _untrusted(tls, connection)
    if tls is not None and "ALERT" in (tls.reason or ""):
        return NotAuthorized(
            f"the broker refuses this client's certificate ({connection.get('ssl_certfile') or 'none is set'}): "
            f"{tls.reason}; set kafka.ssl_certfile and kafka.ssl_keyfile to one that the broker's CA has signed"
        )
    if tls is not None and tls.reason == "WRONG_VERSION_NUMBER":
        return NotAuthorized(f"kafka.security_protocol: is {protocol}, but this port does not speak TLS; {_OTHER_PORT}")
    return None


_OTHER_PORT = "set PLAINTEXT or SASL_PLAINTEXT, or the port of a listener with TLS"


def _untrusted(error: ssl.SSLCertVerificationError, connection: Mapping[str, Any]) -> ConsumersError:
    """Say why the broker's certificate is not trusted: only one that has run out can heal without this client."""
    said = error.verify_message
    if error.verify_code in (_EXPIRED, _NOT_YET_VALID):
        return BrokerUnavailable(f"the broker's certificate is not valid today: {said}; renew it, or set the clock")
    if "mismatch" in said:
        return NotAuthorized(
            f"the broker's certificate is for another host: {said} set kafka.bootstrap_servers and the broker's "
            "advertised.listeners to names that are in it (or kafka.ssl_check_hostname: false)"
        )
    return NotAuthorized(
        f"the broker's certificate is signed by a CA that is not trusted: {said}; set kafka.ssl_cafile "
        f"({connection.get('ssl_cafile') or 'not set: those of this machine'}) to a PEM file with the broker's CA"
    )


def _hung_up(error: Exception, connection: Mapping[str, Any]) -> str:
    """Say what it may mean that the broker hung up without a word; empty if it did not."""
    protocol = connection.get("security_protocol", "PLAINTEXT")
    text = str(error)
    if "Handshake failed" in text and isinstance(
        error.__context__, ssl.SSLEOFError | ssl.SSLZeroReturnError | ConnectionError
    ):
        return (
            f"the broker hangs up during the TLS handshake; kafka.security_protocol is {protocol}: if this port does "
            f"not speak TLS, {_OTHER_PORT}"
        )
    if "socket disconnected" not in text and "reset by peer" not in text:
        return ""
    meant = "SASL_PLAINTEXT, SSL or SASL_SSL" if protocol == "PLAINTEXT" else "SASL_SSL"
    advice = "check the broker's log" if protocol == "SASL_SSL" else f"if this port needs more, set {meant}"
    return f"the broker hangs up on the first request; kafka.security_protocol is {protocol}: {advice}"


def _tls_error(error: Exception) -> ssl.SSLError | None:
    """Return the TLS error that kafka-python wraps, at the handshake as context, later as argument."""
    wrapped = (error, error.__context__, *error.args[:1])
    return next((inner for inner in wrapped if isinstance(inner, ssl.SSLError)), None)


def _is_alert(error: Exception) -> bool:
    length = str(error).rpartition(" ")[2]
    return length.isdecimal() and int(length) >> 16 == _TLS_ALERT


class HideLogins(logging.Filter):
    """Keep logins out of the Kafka client's debug log: it prints every message, and the bytes of it, as they are."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Say messages of a login by their kind, bytes by their number."""
        if isinstance(record.args, tuple):
            record.args = tuple(_hidden(argument) for argument in record.args)
        return True


def _hidden(argument: object) -> object:
    if isinstance(argument, bytes | bytearray | memoryview):
        return f"{len(argument)} bytes"
    kind = type(argument).__name__
    return kind if kind.startswith("Sasl") else argument


_HIDE_LOGINS = HideLogins()


def hide_logins() -> None:
    """Keep logins out of the log from now on; again and again is fine."""
    for name in ("kafka.net.connection", "kafka.protocol.parser"):
        logging.getLogger(name).addFilter(_HIDE_LOGINS)
