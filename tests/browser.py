"""A browser between an application's test client and a real provider."""

from typing import Any
from urllib.parse import urlsplit

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from tests.servers import OIDCServer
from tests.servers.oidc import new_session

__all__ = ["NAVIGATION", "Browser"]

NAVIGATION = {"Accept": "text/html", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Site": "none"}


class Browser:
    """Opens pages as a person would: redirects lead to the provider and back again."""

    def __init__(self, app: Flask, provider: OIDCServer) -> None:
        self.client: FlaskClient = app.test_client()
        self._provider = provider
        self._session = new_session()

    def open(self, path: str, **options: Any) -> TestResponse:
        """Open a page, through as many redirects as it takes."""
        response = self.client.get(path, headers=NAVIGATION, **options)
        for _ in range(10):
            if response.status_code not in (302, 303):
                return response
            response = self.follow(response.headers["Location"])
        raise AssertionError("more than 10 redirects")

    def follow(self, url: str) -> TestResponse:
        """Go to where a redirect leads: to the provider and back, or to another page."""
        if url.startswith(self._provider.issuer):
            visit = self._provider.visit(url, self._session)
            url = visit.url
        parts = urlsplit(url)
        target = f"{parts.path}?{parts.query}" if parts.query else parts.path
        return self.client.get(target, headers=NAVIGATION)
