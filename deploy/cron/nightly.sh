#!/usr/bin/env bash
# One night's embeddings on a running Ray cluster:  deploy/cron/nightly.sh 2026-11-22
# The crontab and the systemd units beside it call this with the day before; so do you, with its date, for a night that was missed.
# A night that is done is not done again, one that runs is followed, one that failed goes on where it stood (see deploy/submit.py).
set -euo pipefail

if [ $# -ne 1 ]; then
    echo "usage: $0 PARTITION, such as 2026-11-22" >&2
    exit 2
fi
cd "$(dirname "$0")/../.."

# The cluster's password is in ~/.ray/auth_token, or in the file that RAY_AUTH_TOKEN_PATH names.
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"

# SET: the cluster, model, table, key, output, tracking server.
exec .venv/bin/python deploy/submit.py \
    --address http://127.0.0.1:8265 \
    --job encode --model models:/customers@champion --partition "$1" -- \
    --data.path s3://my-bucket/customers --data.partition {partition} --data.key customer_id \
    --output.path s3://my-bucket/embeddings \
    --registry.tracking_uri http://mlflow.example.internal:5000
