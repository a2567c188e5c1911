#!/bin/sh
# Makes what albat's deployments need on a Prefect server. Run again, it changes nothing.
set -eu
: "${PREFECT_API_URL:?is the address of the API}"
: "${ALBAT_BUCKET:?is the bucket for artifacts}"

prefect server status --wait --timeout 120
prefect --no-prompt work-pool create albat --type process --overwrite
# A run wants the whole machine; what exceeds the limit waits in the queue.
prefect work-pool set-concurrency-limit albat "${ALBAT_RUNS_AT_ONCE:-1}"
prefect automation inspect albat-crashed-runs > /dev/null 2>&1 \
    || prefect automation create --from-file /usr/local/share/crashed-runs.yaml
python -c 'import os, s3fs; s3fs.S3FileSystem().makedirs(os.environ["ALBAT_BUCKET"], exist_ok=True)'
prefect --no-prompt deploy --all
