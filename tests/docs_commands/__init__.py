"""The commands of the pages that newcomers read, run as they are."""
