"""The reporter: a Temporal worker in a thread of its own that writes what workflows report into `/status`."""
