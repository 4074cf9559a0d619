"""One process or several workers: hosting, supervision and what workers share."""
