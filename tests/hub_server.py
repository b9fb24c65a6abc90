"""A Hugging Face hub on this machine with one dataset, `me/texts`, as far as HfFileSystem uses its interface."""

import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

REPOSITORY = "me/texts"
_SHA = "0" * 40


@contextmanager
def serve_hub(files: Mapping[str, bytes], *, token: str) -> Iterator[str]:
    """Serve the files of the dataset to requests with this token. Yields the URL of the hub."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: Any) -> None:
            pass

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            url = urlsplit(self.path)
            path = unquote(url.path)
            if self.headers.get("Authorization") != f"Bearer {token}":
                self._answer(401, b"{}")
            elif tree := re.fullmatch(rf"/api/datasets/{REPOSITORY}/tree/[^/]+/?(.*)", path):
                is_recursive = parse_qs(url.query).get("recursive", ["false"])[0].lower() == "true"
                self._answer_json(_list(files, tree[1], is_recursive))
            elif re.fullmatch(rf"/api/datasets/{REPOSITORY}(/revision/[^/]+)?", path):
                self._answer_json({"id": REPOSITORY, "sha": _SHA, "private": False, "tags": [], "siblings": []})
            elif (file := re.fullmatch(rf"/datasets/{REPOSITORY}/resolve/[^/]+/(.*)", path)) and file[1] in files:
                self._answer_file(files[file[1]])
            else:
                self._answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length", 0))).decode()
            paths = json.loads(body)["paths"] if body.startswith("{") else parse_qs(body).get("paths", [])
            self._answer_json([_entry(path, files[path]) for path in paths if path in files])

        def _answer_file(self, content: bytes) -> None:
            headers = {"ETag": '"1"', "X-Repo-Commit": _SHA, "Accept-Ranges": "bytes"}
            span = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
            if span is None:
                self._answer(200, content, headers)
                return
            begin, end = int(span[1]), min(int(span[2] or len(content) - 1), len(content) - 1)
            headers["Content-Range"] = f"bytes {begin}-{end}/{len(content)}"
            self._answer(206, content[begin : end + 1], headers)

        def _answer_json(self, value: Any) -> None:
            self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

        def _answer(self, status: int, content: bytes, headers: Mapping[str, str] | None = None) -> None:
            self.send_response(status)
            for name, value in {"Content-Length": str(len(content)), **(headers or {})}.items():
                self.send_header(name, value)
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


def _entry(path: str, content: bytes) -> dict[str, Any]:
    return {"type": "file", "path": path, "size": len(content), "oid": _SHA}


def _list(files: Mapping[str, bytes], folder: str, is_recursive: bool) -> list[dict[str, Any]]:
    """Return the entries of a folder, also of the folders in it if `is_recursive`."""
    prefix = f"{folder.strip('/')}/" if folder.strip("/") else ""
    entries: dict[str, dict[str, Any]] = {}
    for path, content in files.items():
        if path.startswith(prefix):
            parts = path.removeprefix(prefix).split("/")
            for depth in range(1, len(parts) if is_recursive else min(2, len(parts))):
                name = prefix + "/".join(parts[:depth])
                entries[name] = {"type": "directory", "path": name, "size": 0, "oid": _SHA}
            if is_recursive or len(parts) == 1:
                entries[path] = _entry(path, content)
    return list(entries.values())
