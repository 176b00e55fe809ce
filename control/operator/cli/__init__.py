"""The `weft` command.  Commands that talk to the daemon import the API client and nothing of the daemon."""
