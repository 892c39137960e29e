"""A coverage-guided fuzzer of the tap; see README.md."""
