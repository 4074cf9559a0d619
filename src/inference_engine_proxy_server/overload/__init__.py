"""Overload protection: rejects requests early when event-loop lag, memory use or open files reach a limit."""
