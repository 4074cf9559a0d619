"""Admission bounds derived from event-loop lag and memory use."""
