"""A service over HTTP: requests of many users, decoded together."""
