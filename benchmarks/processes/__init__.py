"""What benchmarks that run others side by side have in common: environments, processes, and what these use up."""
