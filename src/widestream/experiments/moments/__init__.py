"""How mean, variance and correlation move through a decoder: closed forms, measured, trained."""
