#!/bin/sh
# Makes what albat's deployments need on a Prefect server, in a folder that has prefect.yaml, and the
# bucket ALBAT_BUCKET where one is named. Run again, it leaves alone what a person has set on the pages.
set -eu
: "${PREFECT_API_URL:?is the address of the API}"

prefect server status --wait --timeout 120
# A run wants the whole machine; what exceeds the limit waits in the queue.
if ! prefect work-pool inspect albat > /dev/null 2>&1; then
    prefect --no-prompt work-pool create albat --type process
    prefect work-pool set-concurrency-limit albat "${ALBAT_RUNS_AT_ONCE:-1}"
elif [ -n "${ALBAT_RUNS_AT_ONCE:-}" ]; then
    prefect work-pool set-concurrency-limit albat "$ALBAT_RUNS_AT_ONCE"
fi
if [ -n "${ALBAT_BUCKET:-}" ]; then
    python -c 'import os, s3fs; s3fs.S3FileSystem().makedirs(os.environ["ALBAT_BUCKET"], exist_ok=True)'
fi
# The automation for crashed runs, and all deployments.
python -m flows.local.redeploying
