"""Tokens for SASL/OAUTHBEARER: OAuth 2.0 client credentials (RFC 6749, section 4.4) from a token endpoint."""

from __future__ import annotations

import base64
import binascii
import http.client
import json
import logging
import ssl
import threading
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable
from typing import Any, NamedTuple

from consumers.errors import BrokerUnavailable, ConsumersError, NotAuthorized

log = logging.getLogger(__name__)

_FRESH = 0.8
"""Share of a token's life after which it is renewed, as in Kafka's own clients."""
_TIMEOUT_S = 5.0
"""The Kafka client waits meanwhile, heartbeats included."""
_MAX_ANSWER = 1 << 20
_MAX_SHOWN = 200


class Token(NamedTuple):
    """An access token and the moments, of a monotonic clock, from which it should, and must, be renewed."""

    text: str
    renew_at: float
    expires_at: float


class ClientCredentials:
    """Get tokens for a client, each used until most of its life is over; an old one goes on if there is no new one.

    Parameters
    ----------
    url
        The token endpoint. Redirects are not followed: they would carry the secret elsewhere.
    scope
        What to ask for; None: what the endpoint gives without.
    cafile
        CAs, in PEM, that are trusted beside those of this machine.
    clock, wall_clock
        Seconds; the second only reads when a token says that it ends.
    """

    def __init__(
        self,
        url: str,
        *,
        client_id: str,
        client_secret: str,
        scope: str | None = None,
        cafile: str | None = None,
        timeout_s: float = _TIMEOUT_S,
        clock: Callable[[], float] = time.monotonic,
        wall_clock: Callable[[], float] = time.time,
    ) -> None:
        self.url = url
        self.client_id = client_id
        self._client_secret = client_secret
        self._scope = scope
        self._cafile = cafile
        self._timeout_s = timeout_s
        self._clock = clock
        self._wall_clock = wall_clock
        self._lock = threading.Lock()
        self._token: Token | None = None

    def token(self) -> str:
        """Return a token that has not expired.

        Raises
        ------
        BrokerUnavailable
            If the endpoint cannot be reached or is out of order, and there is no token that is still good.
        NotAuthorized
            If it refuses the client, or does not answer as a token endpoint does.
        """
        with self._lock:
            if self._token is None or self._clock() >= self._token.renew_at:
                try:
                    self._token = self._ask()
                except BrokerUnavailable as error:
                    if self._token is None or self._clock() >= self._token.expires_at:
                        raise
                    log.warning("%s; going on with the token that there is", error)
            return self._token.text

    @property
    def life_s(self) -> float:
        """For how many more seconds the last token is good; 0 if there is none, or it does not say."""
        with self._lock:
            return 0.0 if self._token is None else max(0.0, self._token.expires_at - self._clock())

    def __repr__(self) -> str:
        return f"ClientCredentials({self.url!r}, client_id={self.client_id!r}, client_secret='***')"

    def _ask(self) -> Token:
        now = self._clock()
        answer = self._read()
        text = answer.get("access_token")
        # Anything else could add to what the client sends the broker.
        if not isinstance(text, str) or not text or not text.isascii() or not text.isprintable() or " " in text:
            raise self._refused("answers without an access_token")
        life_s = self._life_s(answer, text)
        return Token(text, now + _FRESH * life_s, now + life_s)

    def _life_s(self, answer: dict[str, Any], token: str) -> float:
        """Return how long a token is good, 0 if nobody says so: then each connection gets one of its own."""
        try:
            return max(0.0, float(answer["expires_in"]))
        except (KeyError, TypeError, ValueError):
            until = claims(token).get("exp")
            return max(0.0, until - self._wall_clock()) if isinstance(until, int | float) else 0.0

    def _read(self) -> dict[str, Any]:
        asked = {"grant_type": "client_credentials"} | ({"scope": self._scope} if self._scope else {})
        # Joined, not formatted: the secret may be a text that formats as asterisks.
        login = base64.b64encode(":".join((self.client_id, self._client_secret)).encode()).decode()
        request = urllib.request.Request(
            self.url,
            data=urllib.parse.urlencode(asked).encode(),
            headers={"Authorization": f"Basic {login}", "Accept": "application/json"},
        )
        try:
            with self._opener().open(request, timeout=self._timeout_s) as response:
                content = response.read(_MAX_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                raise self._answered(error) from None
        except urllib.error.URLError as error:
            if isinstance(error.reason, ssl.SSLCertVerificationError):
                raise self._refused(
                    f"has a certificate that is not trusted: {error.reason.verify_message}; add its CA to "
                    "kafka.ssl_cafile"
                ) from error
            raise self._silent(error.reason) from error
        except (OSError, http.client.HTTPException) as error:
            raise self._silent(error) from error
        try:
            answer = json.loads(content)
        except ValueError as error:
            raise self._refused("does not answer in JSON") from error
        return answer if isinstance(answer, dict) else {}

    def _opener(self) -> urllib.request.OpenerDirector:
        context = ssl.create_default_context()
        if self._cafile is not None:
            context.load_verify_locations(self._cafile)
        return urllib.request.build_opener(urllib.request.HTTPSHandler(context=context), _NoRedirects())

    def _answered(self, error: urllib.error.HTTPError) -> ConsumersError:
        """Say an answer that is an error: of the endpoint's for the moment, or because of what it was asked."""
        if error.code >= 500 or error.code in (408, 429):
            return self._silent(f"HTTP {error.code}")
        if 300 <= error.code < 400:
            return self._refused(f"redirects to {error.headers.get('Location')}; give the final address")
        said = error.read(_MAX_ANSWER).decode("utf-8", "replace").replace(self._client_secret, "***")
        said = " ".join(said.split())[:_MAX_SHOWN]
        return self._refused(
            f"refuses client {self.client_id!r} with HTTP {error.code}: {said or 'no reason'}; check "
            "kafka.sasl_oauthbearer_client_id, …_client_secret and …_scope"
        )

    def _refused(self, why: str) -> NotAuthorized:
        return NotAuthorized(f"kafka.sasl_oauthbearer_token_endpoint_url: {self.url} {why}")

    def _silent(self, why: object) -> BrokerUnavailable:
        return BrokerUnavailable(
            f"kafka.sasl_oauthbearer_token_endpoint_url: no token from {self.url}: {why}; check the endpoint"
        )


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    def redirect_request(self, *_: Any) -> None:
        """Follow none: it becomes an HTTPError."""


def claims(token: str) -> dict[str, Any]:
    """Return what a JSON web token says, unchecked; nothing if it is no such token.

    Examples
    --------
    >>> claims("e30.eyJzdWIiOiJzY29yZXIifQ."), claims("opaque")
    ({'sub': 'scorer'}, {})
    """
    try:
        payload = token.split(".")[1]
        found = json.loads(base64.urlsafe_b64decode(payload + "=" * (-len(payload) % 4)))
    except (IndexError, ValueError, binascii.Error):
        return {}
    return found if isinstance(found, dict) else {}


def token_provider(credentials: ClientCredentials) -> Any:
    """Return what kafka-python takes as ``sasl_oauth_token_provider``.

    Our errors travel through the client as the cause of its own: it knows what to do with those. What it has beyond
    that, ``life_s``, is for librdkafka.
    """
    from kafka.errors import KafkaConnectionError, SaslAuthenticationFailedError
    from kafka.net.sasl.oauth import AbstractTokenProvider

    class Provider(AbstractTokenProvider):  # type: ignore[misc]  # kafka-python has no types
        client_id = credentials.client_id

        def token(self) -> str:
            try:
                return credentials.token()
            except NotAuthorized as error:
                raise SaslAuthenticationFailedError(str(error)) from error
            except BrokerUnavailable as error:
                raise KafkaConnectionError(str(error)) from error

        @property
        def life_s(self) -> float:
            return credentials.life_s

        def __repr__(self) -> str:
            return repr(credentials)

    return Provider()
