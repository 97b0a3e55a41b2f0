"""Ways through the depth of a decoder."""
