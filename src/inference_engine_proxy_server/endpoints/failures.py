"""Answers failures of own endpoints in the same format as all other errors of this proxy."""

from __future__ import annotations

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException

from inference_engine_proxy_server.errors import ClientError, ProxyError
from inference_engine_proxy_server.wire.error_replies import error_body, error_fields

__all__ = ["answer_failures"]

# Replaces pydantic's messages about query parameters, which are about Python.
_WORDS = {
    "float_parsing": "must be a number",
    "finite_number": "must be a number",
    "int_parsing": "must be a whole number",
    "int_from_float": "must be a whole number",
    "greater_than_equal": "must be at least {ge}",
    "less_than_equal": "must be at most {le}",
}


def answer_failures(app: FastAPI) -> None:
    """Make ``app`` answer every failure of its endpoints with an error body of this proxy."""

    @app.exception_handler(ProxyError)
    async def proxy_error(request: Request, error: ProxyError) -> Response:
        path, request_id = request.url.path, request.state.request_id
        fields = (line.split(b": ", 1) for line in error_fields(error, path, request_id).splitlines())
        headers = {name.decode(): value.decode() for name, value in fields}
        return Response(error_body(error, path, request_id), error.status, headers)

    @app.exception_handler(HTTPException)
    async def http_exception(request: Request, error: HTTPException) -> Response:
        code = "not_found" if error.status_code == 404 else "invalid_request"
        return await proxy_error(request, ClientError(f"{error.detail}.", status=error.status_code, code=code))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        words = _WORDS.get(first["type"])
        text = first["msg"] if words is None else words.format_map(first.get("ctx", {}))
        return await proxy_error(request, ClientError(f"{first['loc'][-1]}: {text}."))
