"""A client made before celery forks its workers: celery --app jobs worker --pool prefork --concurrency 4

The endpoint comes from VALKYRIE_ENDPOINT, the folder of the queue from JOBS_FOLDER. `python jobs.py` sends jobs.
"""

import os
from pathlib import Path

import celery  # type: ignore[import-untyped, import-not-found, unused-ignore]

import valkyrie.sync

folder = Path(os.environ.get("JOBS_FOLDER", "jobs"))
for name in ("queue", "control", "results"):
    (folder / name).mkdir(parents=True, exist_ok=True)
app = celery.Celery("jobs", broker="filesystem://", backend=(folder / "results").absolute().as_uri())
app.conf.broker_transport_options = {
    "data_folder_in": folder / "queue",
    "data_folder_out": folder / "queue",
    "control_folder": folder / "control",
    "polling_interval": 0.01,
}

client = valkyrie.sync.connect(os.environ.get("VALKYRIE_ENDPOINT", "tcp://localhost:8080"))
# The connection stands before the fork.
client.request("before the fork")


def echo(text: str) -> tuple[str, int]:
    return client.request(text).decode(), os.getpid()


job = app.task(echo, name="echo")

if __name__ == "__main__":
    sent = [(f"job {number}", job.delay(f"job {number}")) for number in range(40)]
    for text, result in sent:
        assert result.get(timeout=60, interval=0.01)[0] == text
    print(f"{len(sent)} jobs in {len({result.get()[1] for _, result in sent})} processes")
