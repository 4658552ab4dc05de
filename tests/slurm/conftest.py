"""The fixtures of the integration tests that call reproduce.py."""

from tests.integration.conftest import command, folders  # noqa: F401
