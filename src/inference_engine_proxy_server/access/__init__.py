"""Who may ask for what, and how much: keys, their limits, and the gate that asks for them."""
