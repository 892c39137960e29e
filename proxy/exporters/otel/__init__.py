"""Spans and metrics over OTLP.  The only package that knows OpenTelemetry."""
