"""What several tests share: fakes, reference implementations, tiny models and runs."""
