"""A celery application whose queue and results are files."""

from __future__ import annotations

import os
from pathlib import Path

from celery import Celery
from servers import answer

FOLDER = Path(os.environ["PYMEM_TEST_FOLDER"])

app = Celery("celery_tasks", broker="filesystem://")
app.conf.update(
    broker_transport_options={
        "data_folder_in": str(FOLDER / "queue"),
        "data_folder_out": str(FOLDER / "queue"),
        "control_folder": str(FOLDER / "control"),
        "polling_interval": 0.01,
    },
    worker_prefetch_multiplier=16,
    task_ignore_result=True,
)


@app.task  # type: ignore[untyped-decorator]
def work(number: int) -> None:
    """Leaves a line about itself."""
    with (FOLDER / "done" / f"{os.getpid()}").open("ab") as file:
        file.write(f"{number}\n".encode())
    (FOLDER / "row").write_bytes(answer()[:80])
