"""Every setting: its type, default, range and meaning.

The environment variable of a setting is the field's name in capitals; :mod:`.sources` finds its value. Creating
``Settings`` directly reads no file and no variable.
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field

from inference_engine_proxy_server.config.control_endpoints import CONTROL_ENDPOINTS
from inference_engine_proxy_server.config.values import (
    ApiKeys,
    AsLogLevel,
    BalancingPolicy,
    BaseUrls,
    HostName,
    InLowerCase,
    Networks,
    PathRule,
    PathRules,
    Secret,
    StateLocation,
    StatePrefix,
    Statuses,
    as_path_rules,
    as_variable,
)

__all__ = ["PathRule", "Settings", "as_variable"]

_Seconds = Annotated[float, Field(gt=0, le=86_400)]
_SecondsOrZero = Annotated[float, Field(ge=0, le=86_400)]
_Requests = Annotated[int, Field(ge=0, le=1_000_000)]


class Settings(BaseModel):
    """All settings of one proxy, validated; the name of a number ends with its unit."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    port: Annotated[int, Field(ge=0, le=65_535)] = 8888
    """TCP port to listen on; 0 lets the operating system choose a free one."""
    host: HostName = "127.0.0.1"
    """IP address or host name to listen on; 0.0.0.0 means every IPv4 address of this machine, :: every address."""
    workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that share the port, each with its own event loop; more than one needs Linux."""
    backends: BaseUrls = ()
    """Base URLs of the engine servers, separated by commas; `serve` needs at least one."""
    config_file: str | None = None
    """YAML file that describes the fleet, and has settings that neither the environment nor `.env` sets."""
    dynamic_backends_file: str | None = None
    """File in which the proxy keeps the backends that operators add; without it they are lost at a restart."""
    model_dir: str | None = None
    """Directory with the model files; only the Compose files use it, to start the engines."""
    model: str | None = None
    """Model that the engines load; only the Compose files use it, to start the engines."""

    metrics_cache_ttl_seconds: _Seconds = 3
    """Seconds between two polls of every backend's state."""
    backend_timeout_seconds: _Seconds = 300
    """Longest wait in seconds for the first byte of a backend's reply, and for each further byte."""
    backend_first_byte_timeout_seconds: _Seconds | None = None
    """Longest wait in seconds for the first byte of a backend's reply; default: BACKEND_TIMEOUT_SECONDS."""
    first_token_timeout_seconds: _SecondsOrZero = 0
    """Longest wait in seconds for the first event of a stream; then another backend gets the request; 0: no limit."""
    backend_stream_idle_timeout_seconds: _Seconds | None = None
    """Longest pause in seconds within a backend's reply; default: BACKEND_TIMEOUT_SECONDS."""
    retry_statuses: Statuses = (429, 500, 502, 503)
    """Statuses of a backend after which a repeatable request is tried once on another backend; empty: none."""
    request_timeout_seconds: _SecondsOrZero = 0
    """Longest time in seconds from the last byte of a request to the end of its reply; 0 means no limit."""
    websocket_idle_timeout_seconds: _SecondsOrZero = 300
    """Seconds without a byte in either direction after which a WebSocket is closed; 0 means no limit."""
    backend_connect_timeout_seconds: _Seconds = 2
    """Longest wait in seconds for a new connection to a backend."""
    max_allowed_request_queue: _Requests | None = None
    """A llama.cpp backend that processes more requests gets no new ones; default: 6, or its slots if more."""
    max_allowed_deferred: _Requests = 3
    """A llama.cpp backend is busy and gets no new requests if more requests than this wait inside it."""
    backend_idle_connection_seconds: _SecondsOrZero = 3
    """Seconds for which an idle connection to a backend may be reused; 0 opens a new one for every request."""
    llamacpp_keep_alive: bool = False
    """Whether connections to llama.cpp are reused; each idle one occupies one of its HTTP threads for 5 s."""
    suspect_after_seconds: _Seconds = 120
    """Seconds without any sign of work after which a backend that has our requests counts as stuck."""
    health_test_requests: bool = False
    """Whether a backend that seems stuck is asked to generate one token as a test."""
    slow_start_seconds: _SecondsOrZero = 30
    """Seconds in which a backend that has failed grows from a tenth of its share to the full share; 0: at once."""

    balancing_policy: BalancingPolicy = "least_requests"
    """How a backend is picked: fewest requests, soonest first token, better of two, in turn, or by hash."""
    shadow_policy: BalancingPolicy | None = None
    """A policy that decides beside BALANCING_POLICY, without effect; /metrics shows what it would have saved."""
    tier_penalty_seconds: _SecondsOrZero = 10
    """Under expected_time, seconds that a request waits rather than go to the next tier of backends."""
    default_model: str | None = None
    """Model of requests that name none, if backends serve different models; default: the first listed model."""
    prefix_index_bytes: Annotated[int, Field(ge=2**16, le=2**40)] = 67_108_864
    """Most memory in bytes for the index of prompts that backends hold; for expected_time and shadow policies."""
    backend_queue_allowance: _Requests = 1
    """Requests that a backend may have beyond its slots; all others wait in the proxy."""
    max_queued_requests: _Requests = 1024
    """Most requests that wait in the proxy for a free backend; further ones are answered with 429."""
    queue_timeout_seconds: _Seconds = 30
    """Longest wait in seconds for a free backend; after it a request is answered with 503."""
    model_swap_wait_seconds: _SecondsOrZero = 10
    """Seconds for which a llama.cpp router's loaded model gets new requests while a request for another model waits."""
    queue_updates: bool = False
    """Whether every waiting stream gets its queue position as comments, not only those with x-queue-updates."""
    stream_heartbeat_seconds: _SecondsOrZero = 45
    """Seconds without a byte after which a client that waits for its stream gets a comment; 0: no comments."""
    stream_resume: Annotated[Literal["on", "off", "header"], InLowerCase] = "on"
    """Whether streams that break are continued on another backend; header: only with x-stream-resume: on."""
    stream_resume_comments: bool = True
    """Whether a comment in a resumed stream says where and why it was resumed."""
    assemble_replies: bool = True
    """Whether completions without `stream` are sent to llama.cpp as streams, which can be cancelled and resumed."""
    priority_header: bool = False
    """Whether requests may set their priority in x-priority, from -100 to 100."""

    max_client_connections: Annotated[int | None, Field(ge=1, le=1_000_000)] = None
    """Most client connections; default: 10,000, or two fifths of the open-file limit if that is fewer."""
    max_requests_in_flight: Annotated[int, Field(ge=1, le=1_000_000)] = 4096
    """Most requests at a time, waiting ones included; further ones are answered with 503."""
    max_request_bytes_in_flight: Annotated[int, Field(ge=1, le=2**40)] = 536_870_912
    """Most bytes of request bodies in memory at a time; a request beyond it is answered with 503."""
    memory_limit_bytes: Annotated[int | None, Field(ge=2**26, le=2**50)] = None
    """Memory in bytes that this process may use; default: the limit of its container."""

    max_request_body_bytes: Annotated[int, Field(ge=1, le=2**40)] = 67_108_864
    """Largest request body in bytes; a larger one is answered with 413."""
    max_request_header_bytes: Annotated[int, Field(ge=256, le=2**24)] = 32_768
    """Largest header section of a request in bytes; a larger one is answered with 431."""
    max_request_line_bytes: Annotated[int, Field(ge=64, le=2**20)] = 8192
    """Longest request line in bytes; a longer one is answered with 414."""
    max_request_header_count: Annotated[int, Field(ge=1, le=10_000)] = 100
    """Most header fields of one request; a request with more is answered with 431."""

    client_header_timeout_seconds: _Seconds = 10
    """Longest time in seconds from the first byte of a request to the end of its header section."""
    client_body_timeout_seconds: _Seconds = 30
    """Longest pause in seconds within a request body."""
    client_body_total_timeout_seconds: _Seconds = 300
    """Longest time in seconds for a whole request body, even if bytes keep arriving."""
    client_keep_alive_seconds: _Seconds = 75
    """Seconds for which an idle client connection stays open."""
    client_write_stall_seconds: _Seconds = 60
    """Seconds without progress after which a client that does not read its reply is disconnected."""

    api_keys: ApiKeys = ()
    """API keys of clients, `NAME:SECRET` separated by commas; once set, every request to an engine needs one."""
    api_keys_file: str | None = None
    """YAML file with API keys of clients and their limits; it is read again when it changes."""
    backend_api_key: Secret | None = None
    """Key that the proxy sends to every backend, in place of the client's own."""
    backend_ca_file: str | None = None
    """PEM file with the certificate authorities of backends, in addition to those of the system."""
    forward_client_key: bool = False
    """Whether the client's key is forwarded to backends although the proxy has checked it."""
    admin_key: Secret | None = None
    """Key for all paths below /admin/; without it they are off."""
    admin_port: Annotated[int | None, Field(ge=0, le=65_535)] = None
    """TCP port that serves /admin/ and /metrics instead of PORT; without it PORT does."""
    announce_key: Secret | None = None
    """Key with which engines may join and leave by themselves; without it they cannot."""
    metrics_key: Secret | None = None
    """Key for /metrics; without it anyone can read the metrics."""
    health_details: Annotated[Literal["all", "key"], InLowerCase] = "all"
    """Who sees the addresses of backends in /health: everyone (all), or only clients with an API key (key)."""
    trusted_proxies: Networks = ()
    """Proxies in front whose X-Forwarded-* headers are trusted: addresses, networks, or `private`."""
    tls_cert_file: str | None = None
    """PEM file with the certificate and its chain; with it clients reach the proxy only over HTTPS."""
    tls_key_file: str | None = None
    """PEM file with the private key of the certificate."""

    blocked_paths: PathRules = as_path_rules(CONTROL_ENDPOINTS)
    """Rules `[METHOD ]/path[*]`, separated by commas, for requests answered with 403; empty blocks nothing."""
    backend_header: bool = True
    """Whether replies name their backend in the header x-backend."""
    server_timing: bool = False
    """Whether replies have the header server-timing, with their time in the queue and on the backend."""
    explain_header: bool = False
    """Whether requests with x-proxy-explain: 1 get the reason for their routing; it reveals backend names."""

    access_log: bool = True
    """Whether every request is logged as one line; requests for /health, /livez, /readyz and /metrics are not."""
    access_log_probes: bool = False
    """Whether the access log includes requests for /health, /livez, /readyz and /metrics."""
    log_level: Annotated[Literal["debug", "info", "warning", "error"], AsLogLevel] = "info"
    """Lowest level that is logged."""
    log_format: Annotated[Literal["text", "json"], InLowerCase] = "text"
    """Format of log lines: text for people, or one JSON object per line for programs."""
    tracing: bool = False
    """Whether each forwarded request becomes a span of OpenTelemetry; the OTEL_ variables say where spans go."""
    usage_file: str | None = None
    """SQLite file in which the tokens of each hour, key and model are kept; without it they are not recorded."""
    state_url: StateLocation | None = None
    """URL of the Redis or Valkey server whose state all replicas share; without it each replica is on its own."""
    state_prefix: StatePrefix = "inference-proxy"
    """First part of all keys in Redis; replicas that share state have the same one, and other fleets another."""
    drain_grace_seconds: _SecondsOrZero = 5
    """Seconds after SIGTERM in which new requests are still served, if something has been asking /readyz."""
    drain_timeout_seconds: _SecondsOrZero = 300
    """Seconds after SIGTERM in which running requests may end."""
