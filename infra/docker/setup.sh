#!/bin/sh
# Makes what albat's deployments need on a Prefect server. Run again, it changes nothing.
set -eu
: "${PREFECT_API_URL:?the address of the server's API}"
: "${ALBAT_BUCKET:?the bucket for artifacts}"

prefect server status --wait --timeout 120
prefect --no-prompt work-pool create albat --type process --overwrite
# Runs want the whole machine; those that exceed the limit wait in the queue.
prefect work-pool set-concurrency-limit albat "${ALBAT_RUNS_AT_ONCE:-1}"
python -c 'import os, s3fs; s3fs.S3FileSystem().makedirs(os.environ["ALBAT_BUCKET"], exist_ok=True)'
prefect --no-prompt deploy --all
