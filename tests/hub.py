"""As much of the Hugging Face hub as downloading a data set needs, on this machine."""

from __future__ import annotations

import hashlib
import http.server
import json
import threading
import urllib.parse
from pathlib import Path
from typing import Any

NONE_LISTENS = "http://127.0.0.1:9"


def repository(folder: Path, configs: dict[str, dict[str, list[dict[str, Any]]]]) -> Path:
    """A folder laid out as the hub's repository: README.md with a list of the configurations, and their splits."""
    import pyarrow
    from pyarrow import parquet

    readme = ["---", "configs:"]
    for config, splits in configs.items():
        (folder / config).mkdir(parents=True)
        readme += [f"- config_name: {config}", "  data_files:"]
        for split, rows in splits.items():
            readme += [f"  - split: {split}", f"    path: {config}/{split}-*"]
            parquet.write_table(pyarrow.Table.from_pylist(rows), folder / config / f"{split}-00000-of-00001.parquet")
    (folder / "README.md").write_text("\n".join([*readme, "---", ""]))
    return folder


class Hub:
    """As much of the hub as `datasets` asks for, out of a folder, while it is entered."""

    revision = "b" * 40

    def __init__(self, folder: Path, repository: str) -> None:
        """Serve a folder as the repository of this name, owner/name."""
        files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        api, resolve = f"/api/datasets/{repository}", f"/datasets/{repository}/resolve/"

        def entry(name: str) -> dict[str, Any]:
            if name in files:
                oid = hashlib.sha1(files[name]).hexdigest()
                return {"type": "file", "path": name, "size": len(files[name]), "oid": oid}
            return {"type": "directory", "path": name, "oid": "0" * 40}

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                path = urllib.parse.urlsplit(self.path).path
                if path.startswith(resolve):
                    name = path.removeprefix(resolve).partition("/")[2]
                    if name in files:
                        self.answer(200, files[name], {"ETag": f'"{entry(name)["oid"]}"'})
                    else:
                        self.answer(404, b"", {"X-Error-Code": "EntryNotFound"})
                elif path.startswith(f"{api}/tree/"):
                    under = path.removeprefix(f"{api}/tree/").partition("/")[2]
                    names = {name for file in files for name in (file, file.rpartition("/")[0]) if name}
                    inside = sorted(name for name in names if name.rpartition("/")[0] == under)
                    self.answer(200, json.dumps([entry(name) for name in inside]).encode())
                elif path.startswith(api):
                    siblings = [{"rfilename": name} for name in files]
                    info = {"_id": "1", "id": repository, "sha": Hub.revision, "siblings": siblings}
                    self.answer(200, json.dumps(info).encode())
                else:
                    self.answer(404, b"")

            do_HEAD = do_GET

            def answer(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
                self.send_response(status)
                for name, value in {"X-Repo-Commit": Hub.revision, **(headers or {})}.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                if self.command == "GET":
                    self.wfile.write(body)

            def log_message(self, *_: object) -> None:
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self.address = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Hub:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()
