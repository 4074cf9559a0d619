"""State that the ``expected_time`` policy learns: cached prefixes, pending work and engine speeds."""
