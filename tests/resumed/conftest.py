"""The fleets of the end-to-end tests."""

from end_to_end.conftest import start_proxy, start_servers, two_servers, two_slow_servers

__all__ = ["start_proxy", "start_servers", "two_servers", "two_slow_servers"]
