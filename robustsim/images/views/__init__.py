"""Where in a picture another one may be hidden."""
