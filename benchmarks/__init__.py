"""What pagehint costs, measured against a plain linked-list buddy in the same run; see README.md."""
