# shellcheck shell=bash
# The README's commands, word for word, on a copy of the project with new virtual environments; an engine of another
# package that the installed program finds.
install demo,test
exec .venv/bin/python -m pytest tests/installation "$@"
