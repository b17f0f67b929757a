"""A first look at records that nobody has described: what ``init`` writes settings from."""
