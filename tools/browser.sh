#!/bin/sh
# Have a Chromium for the page's tests: the one that is there, else Debian's, installed where that needs no password.
set -eu

for name in "${CONTROLKIT_CHROMIUM:-chromium}" chromium chromium-browser; do
    if command -v "$name" > /dev/null; then exit 0; fi
done
if command -v apt-get > /dev/null && [ "$(id -u)" = 0 ]; then
    echo "installing Chromium for the page's tests"
    export DEBIAN_FRONTEND=noninteractive
    { apt-get install -y -qq --no-install-recommends chromium \
        || { apt-get update -qq && apt-get install -y -qq --no-install-recommends chromium; }
    } > /dev/null 2>&1 || true
fi
command -v chromium > /dev/null || {
    echo "NO CHROMIUM: the tests of the page in a browser will be skipped. Install it: apt-get install chromium" >&2
}
