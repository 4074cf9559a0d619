"""``inference-proxy doctor``: examines a configuration and what it depends on, and says what to change.

::

    settings_checks, machine_checks      without network; `serve` logs these findings, too
    probe                                asks one server over HTTP
    dns_checks                           the names of backends
    backend_checks -> engine_checks      one backend: reachable, key, TLS, clock; then what its engine lacks
    engine_state -> fleet_checks         what engines report; then all backends together
    public_stream -> public_checks       the way through the public address and back
    examination                          runs all of them
"""
