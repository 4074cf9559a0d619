"""The composition root: builds the parts of a proxy from its configuration, each once."""

from inference_engine_proxy_server.composition.proxy import build_proxy

__all__ = ["build_proxy"]
