"""What the ``expected_time`` policy learns about backends: cached prefixes, pending work and speeds."""
