"""Emulated engines: they speak the HTTP of llama.cpp or vLLM, and take the time of the simulation's cost model.

::

    clock              the simulation's events in real time
    http_server        listeners of many engines in one process
    *_api, messages    how each kind of engine answers, and what it reads from a request
    engine             one engine: HTTP -> prompt -> simulation.batching -> text -> HTTP
    host, fleet        a process with many engines, and its parent's view of it
    client, player     clients that send a trace over HTTP
    cases, measurement what is measured, and one run of it: player -> proxy -> engines
    __main__, report   emulated_fleet.sh: real proxies in front of emulated engines
    check, comparison  emulation_check.sh: emulated engines beside real ones, whose speeds calibration measures
"""
