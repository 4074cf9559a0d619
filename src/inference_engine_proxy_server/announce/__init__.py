"""Announces an engine to proxies while it runs: it joins their fleets, stays, and leaves before it stops."""
