#!/usr/bin/env bash
# Chromium for tests/test_report_browser.py, where there is none yet: on Debian and its kin, as root.
set -euo pipefail
for name in "${CHROMIUM:-}" chromium chromium-browser google-chrome chrome; do
  if [ -n "$name" ] && command -v "$name"; then exit 0; fi
done
if [ "$(id -u)" != 0 ] || ! command -v apt-get > /dev/null; then
  echo 'No Chromium here, and only root with apt-get could install it: install it yourself, or set CHROMIUM to its path.' >&2
  exit 1
fi
apt-get -qq update
DEBIAN_FRONTEND=noninteractive apt-get -qq install --no-install-recommends --yes chromium fonts-dejavu-core > /dev/null
command -v chromium
