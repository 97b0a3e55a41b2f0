"""The page of all studies, from records and run folders."""
