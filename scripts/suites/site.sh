# shellcheck shell=bash
# Builds the site of the documentation with warnings as errors, and reads it in Chromium: navigation, search, phone width.
need chromium chromium
install demo,test
scripts/site.sh
exec .venv/bin/python -m pytest tests/docs_site "$@"
