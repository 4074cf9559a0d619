"""Traces: one OpenTelemetry span for each forwarded request, for the setting TRACING.

This package is imported only if the setting is on: it needs the packages of the extra ``otel``.

Sources: OpenTelemetry's specification of environment variables and OTLP exporters; its semantic conventions of HTTP
spans (stable) and of generative AI (v1.41, in development), read November 2026; W3C Trace Context, level 1.
"""
