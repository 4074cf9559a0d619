"""How asynchronous code runs here: light tasks, deadlines and supervised loops."""
