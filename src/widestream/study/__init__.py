"""Many runs: made in parallel, resumable, compared at the end."""
