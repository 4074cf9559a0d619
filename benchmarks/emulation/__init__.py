"""Emulated engines: they speak the HTTP of llama.cpp or vLLM, and take the time of the simulation's cost model.

::

    clock              the simulation's events in real time
    engine             one engine: HTTP -> prompt -> simulation.batching -> generation -> HTTP
    *_api -> messages  how each kind of engine is asked, and answers
    host               a process with many engines; fleet is its parent's view
    player             clients that send a trace over HTTP
    measurement        one run: fleet <- proxy <- player; figures -> report
    __main__           emulated_fleet.sh: real proxies in front of emulated engines
    check, calibration emulation_check.sh: emulated engines compared with real ones
"""
