"""The command line explains itself: help, the guide, completion."""
