#!/bin/sh
# What the tests in a browser need: the app's packages, and Debian's Chromium if there is none and this may install it.
# Without it those tests are skipped, so nothing here stops a run: every failure is one line.
. "$(dirname "$0")/setup.sh"

needs="requirements-app.txt requirements-test.txt"
install_missing "$PYTHON" || say "pip could not install $needs; the tests of the app will be skipped"
"$PYTHON" -m pip install --disable-pip-version-check "playwright>=1.60" >&2 ||
    say "pip could not install playwright; the tests in a browser will be skipped"
if command -v chromium >/dev/null || command -v chromium-browser >/dev/null || command -v google-chrome >/dev/null; then
    say "a browser is there"
elif [ "$(id -u)" = 0 ] && command -v apt-get >/dev/null; then
    { apt-get update -qq && DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends chromium; } >&2 ||
        say "apt could not install chromium; the tests in a browser will be skipped"
else
    say "no Chromium, and this is not root on a Debian; the tests in a browser will be skipped"
fi
