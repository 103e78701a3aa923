"""The commands of the command line, one a file, and the rooms that they share."""
