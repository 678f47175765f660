"""What the servers' tests start: applications that allocate, queues and clients, on loopback alone."""

from __future__ import annotations

import json
import os
import threading
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Iterable


def answer() -> bytes:
    """Some thousand blocks of every domain, and what serves them."""
    import pymem_domains

    rows = [{"id": number, "name": f"name {number}", "tags": [str(number)] * 3} for number in range(200)]
    row = pymem_domains.row() if pymem_domains.active() else "none"
    return json.dumps({"pid": os.getpid(), "row": row, "rows": rows}).encode()


def wsgi(_environ: dict[str, Any], start_response: Callable[..., object]) -> Iterable[bytes]:
    """For gunicorn."""
    start_response("200 OK", [("Content-Type", "application/json")])
    return [answer()]


async def asgi(scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]) -> None:
    """For uvicorn."""
    if scope["type"] == "lifespan":
        while True:
            message = await receive()
            await send({"type": f"{message['type']}.complete"})
            if message["type"] == "lifespan.shutdown":
                return
    headers = [(b"content-type", b"application/json")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer()})


def square(number: int) -> tuple[int, int, str]:
    """For multiprocessing: the process, the square, and what serves."""
    answered = json.loads(answer())
    return answered["pid"], number * number, answered["row"]


def get(port: int) -> dict[str, Any]:
    """One request, over a connection of its own."""
    import http.client

    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    try:
        connection.request("GET", "/")
        response = connection.getresponse()
        body: dict[str, Any] = json.loads(response.read())
        assert response.status == 200
    finally:
        connection.close()
    return body


def ask(port: int, count: int, threads: int = 4, at_half: Callable[[], object] = lambda: None) -> list[dict[str, Any]]:
    """`count` requests from several threads; each must be answered. `at_half` is called when half of them are."""
    answers: list[dict[str, Any]] = []
    faults: list[BaseException] = []
    half = threading.Event()

    def work(share: int) -> None:
        try:
            for _ in range(share):
                answers.append(get(port))
                if len(answers) >= count // 2:
                    half.set()
        except BaseException as fault:
            faults.append(fault)
            half.set()

    workers = [threading.Thread(target=work, args=(count // threads,)) for _ in range(threads)]
    for worker in workers:
        worker.start()
    half.wait(300)
    at_half()
    for worker in workers:
        worker.join()
    if faults:
        raise faults[0]
    return answers
