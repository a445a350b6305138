"""The whole service; a package, so that its services end with the last test that needs them."""
