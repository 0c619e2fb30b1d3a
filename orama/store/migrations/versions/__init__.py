"""One module a revision; each is finished once it has been released."""
