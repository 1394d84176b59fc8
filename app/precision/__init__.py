"""Number formats and what they cost. Pure, like `app.planning`."""
