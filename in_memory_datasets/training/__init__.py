"""All that torch sees: datasets, batches, collate functions."""
