"""An object store for the tests: SeaweedFS with an S3 gateway, and a proxy before it that fails as real stores do.

    python tests/s3_server.py FOLDER    keeps its data in the folder; ends, and ends the store, when stdin is closed

Prints one line of JSON when both answer: the URLs of the store itself and of the proxy. The proxy passes requests on
with their Host header, which the signature covers, except that by the count of requests a few are refused (503, 500),
dropped before or after they were done, or broken off within the answer, and some are late. Of a key in which a fault's
name stands, every request meets that fault the first time. `GET /-/faults` tells how often it did what.
"""

import asyncio
import json
import random
import socket
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import s3fs
from aiohttp import ClientSession, web
from yarl import URL

KEY, SECRET = "raymill-test", "not-a-secret"
FAULTS = {"slow_down": 0.012, "internal": 0.012, "dropped": 0.012, "answer_lost": 0.012, "broken_off": 0.012}
"""Shares of all requests; an answer without a body cannot break off."""
LATE_SHARE, LATE_S = 0.06, (0.05, 0.3)
_REFUSALS = {"slow_down": (503, "SlowDown"), "internal": (500, "InternalError")}
_PARTS = ("s3", "master", "volume", "filer")


def free_ports(number: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(number)]
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


def start_store(folder: Path) -> tuple[subprocess.Popen[bytes], str]:
    """SeaweedFS on free ports of this machine alone, and its S3 URL."""
    (folder / "data").mkdir(parents=True)
    credentials = [{"accessKey": KEY, "secretKey": SECRET}]
    identity = {"name": "test", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List", "Tagging"]}
    (folder / "identities.json").write_text(json.dumps({"identities": [identity]}))
    ports = iter(free_ports(2 * len(_PARTS)))
    options = [f"-{part}.{kind}={next(ports)}" for part in _PARTS for kind in ("port", "port.grpc")]
    command = [str(Path(sys.executable).parent / "weed"), "server", f"-dir={folder / 'data'}", *options]
    command += ["-ip=127.0.0.1", "-ip.bind=127.0.0.1", "-s3", f"-s3.config={folder / 'identities.json'}"]
    command += ["-s3.port.iceberg=0", "-s3.port.lance=0", "-volume.max=0", "-master.volumeSizeLimitMB=64"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen([*command, "-master.telemetry=false"], stdout=log, stderr=log)
    return process, f"http://127.0.0.1:{options[0].partition('=')[2]}"


def wait_for(process: subprocess.Popen[bytes], url: str, limit_s: float = 60.0) -> None:
    """Until the store takes an object."""
    config = {"retries": {"total_max_attempts": 1}}
    files = s3fs.S3FileSystem(key=KEY, secret=SECRET, endpoint_url=url, config_kwargs=config)
    until = time.monotonic() + limit_s
    while process.poll() is None and time.monotonic() < until:
        try:
            return files.pipe_file("raymill-test/ready", b"")
        except Exception:  # of any class while the parts of the store find each other
            time.sleep(0.2)
    raise RuntimeError("the store does not answer; see its log")


class Proxy:
    """Passes requests on to the store, and fails at some of them."""

    def __init__(self, store: str, session: ClientSession) -> None:
        self.store, self.session = store, session
        self.requests, self.made = 0, Counter[str]()
        self.seen: set[tuple[str, str]] = set()

    async def serve(self) -> str:
        runner = web.ServerRunner(web.Server(self.answer))
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", free_ports(1)[0])
        await site.start()
        return site.name

    async def answer(self, request: web.BaseRequest) -> web.StreamResponse:
        if request.path == "/-/faults":
            return web.json_response(dict(self.made) | {"requests": self.requests})
        self.requests += 1
        draw = random.Random(self.requests)
        fault = draw.choices([*FAULTS, None], [*FAULTS.values(), 1 - sum(FAULTS.values())])[0]
        if (request.method, request.raw_path) not in self.seen:
            self.seen.add((request.method, request.raw_path))
            fault = next((name for name in FAULTS if name in request.raw_path), fault)
        if draw.random() < LATE_SHARE:
            self.made["late"] += 1
            await asyncio.sleep(draw.uniform(*LATE_S))
        if request.headers.get("Expect", "").lower() == "100-continue":
            await request.writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
            request.writer.output_size = 0
        body = await request.content.read()  # without the limit of request.read
        if fault in _REFUSALS or fault == "dropped":
            self.made[fault] += 1
            return self._refuse(*_REFUSALS[fault]) if fault in _REFUSALS else self._drop(request)
        passed = [(name, value) for name, value in request.headers.items() if name not in ("Expect", "Connection")]
        url = URL(f"{self.store}{request.raw_path}", encoded=True)
        async with self.session.request(request.method, url, headers=passed, data=body) as theirs:
            content = await theirs.read()
            headers = [(name, value) for name, value in theirs.headers.items() if name not in ("Transfer-Encoding",)]
        if fault == "answer_lost":
            self.made[fault] += 1
            return self._drop(request)
        response = web.StreamResponse(status=theirs.status, headers=headers)
        await response.prepare(request)
        if fault == "broken_off" and len(content) > 1 and request.method == "GET":
            self.made[fault] += 1
            await response.write(content[: len(content) // 2])
            return self._drop(request)
        if request.method != "HEAD":
            await response.write(content)
        await response.write_eof()
        return response

    @staticmethod
    def _refuse(status: int, code: str) -> web.Response:
        text = f"<Error><Code>{code}</Code><Message>a fault of the test</Message></Error>"
        return web.Response(status=status, text=text, content_type="application/xml")

    @staticmethod
    def _drop(request: web.BaseRequest) -> web.Response:
        assert request.transport is not None
        request.transport.abort()
        return web.Response()


async def serve(store: str) -> None:
    async with ClientSession(auto_decompress=False) as session:
        print(json.dumps({"store": store, "faulty": await Proxy(store, session).serve()}), flush=True)
        await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)


def main() -> None:
    process, url = start_store(Path(sys.argv[1]))
    try:
        wait_for(process, url)
        asyncio.run(serve(url))
    finally:
        process.kill()
        process.wait()


if __name__ == "__main__":
    main()
