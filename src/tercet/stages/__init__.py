"""The steps of a run, one file a verb: a Config and a main() that reads from top to bottom."""
