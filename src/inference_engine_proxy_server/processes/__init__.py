"""One process or several workers: hosting by uvicorn, supervision, and the state that workers share."""
