"""Scripted engines and clients over real sockets, and connections in memory."""
