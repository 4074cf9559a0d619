"""What is known of each engine: one module an engine, found by itself.

``base`` is what an engine is written as, ``registry`` finds the engines and tells which one a backend is,
``prometheus_text`` reads the metrics pages of those that have one.

To add an engine, put one module here, or into a package of your own that names the class in the entry point group
``inference_engine_proxy_server.backends``. In it, a subclass of ``base.BaseBackend`` with ``fetch_metrics`` and
with ``providers``, the ``owned_by`` of its ``GET /v1/models``, is complete; nothing else needs to be edited::

    class MyEngineBackend(BaseBackend):
        providers = ("my-engine",)

        async def fetch_metrics(self) -> tuple[float, bool]:
            reply = await self.get("/metrics")
            load = sum_samples(reply.body, ["my_engine_requests"]).get("my_engine_requests")
            if reply.status != 200 or load is None:
                raise UnreadableState(f"GET /metrics answered {reply.status} without my_engine_requests")
            return load, True
"""
