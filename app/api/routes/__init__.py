"""One module per path prefix. Each has a `router` that `app.main` includes."""
