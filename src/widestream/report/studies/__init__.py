"""Reports of studies: many arms, seeds, intervals, beside what the paper prints."""
