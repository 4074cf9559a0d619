"""The ``expected_time`` policy: its scoring, and what it learns: cached prefixes, pending work and engine speeds."""
