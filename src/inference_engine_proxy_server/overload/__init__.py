"""Overload protection: admission limits derived from event-loop lag, memory use and open files."""
