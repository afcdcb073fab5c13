"""Coverage-guided fuzzing: `python -m tests.fuzz`; what it has found so far is replayed by the tests."""
