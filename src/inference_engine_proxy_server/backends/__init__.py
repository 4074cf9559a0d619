"""The supported engines, one module each, discovered automatically.

``base`` has the class that every engine extends, ``registry`` discovers engines and detects the engine of a backend,
``replies`` and ``probe`` ask it, ``prometheus_text`` reads metrics pages, and ``reply_facts`` reads token counts from
replies.

To add an engine, put a module here, or into a package of your own that names the class in the entry point group
``inference_engine_proxy_server.backends``. A subclass of ``base.BaseBackend`` with ``fetch_metrics`` is complete, and
``providers`` lists the ``owned_by`` values of its ``GET /v1/models``; nothing else needs editing::

    class MyEngineBackend(BaseBackend):
        providers = ("my-engine",)

        async def fetch_metrics(self) -> tuple[float, bool]:
            reply = await self.get("/metrics")
            load = sum_samples(reply.body, ["my_engine_requests"]).get("my_engine_requests")
            if reply.status != 200 or load is None:
                raise UnreadableState(f"GET /metrics answered {reply.status} without my_engine_requests")
            return load, True

An engine that can report more implements ``fetch_state`` instead. An engine whose ``owned_by`` is missing, or is not
its own, implements ``recognizes`` as well.
"""
