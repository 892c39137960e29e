"""One view of many hosts: every control process writes its own slots to Redis whole, readers merge them."""
