"""Building blocks for asynchronous code: light tasks, deadlines and supervised loops."""
