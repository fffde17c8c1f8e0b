"""As much of the Hugging Face hub as snapshots and data sets need, on this machine.

Each folder is a repository with the one commit COMMIT, which is also called main and v1.0."""

import http.server
import json
import threading
from pathlib import Path

COMMIT = "0" * 40
NAMES = ("main", "v1.0", COMMIT)


def serve(**repositories: Path) -> http.server.ThreadingHTTPServer:
    """Start a hub that holds models/Tiny/NAME or datasets/Tiny/NAME for every models_NAME=FOLDER or datasets_NAME=FOLDER.

    HF_ENDPOINT=http://127.0.0.1:PORT must be set before huggingface_hub is imported."""
    folders = {f"{kind}/Tiny/{name}": Path(f) for key, f in repositories.items() for kind, _, name in [key.partition("_")]}
    hub = http.server.ThreadingHTTPServer(("127.0.0.1", 0), type("Hub", (_Hub,), {"folders": folders}))
    threading.Thread(target=hub.serve_forever, daemon=True).start()
    return hub


class _Hub(http.server.BaseHTTPRequestHandler):
    folders: dict[str, Path]

    def do_GET(self):
        path = self.path.split("?")[0].removeprefix("/")
        api = path.startswith("api/")
        path = path.removeprefix("api/")
        path = path if path.startswith(("models/", "datasets/")) else f"models/{path}"
        for repository, folder in self.folders.items():
            path = f"{path}/revision/main" if path == repository else path
            verb, _, rest = path.removeprefix(f"{repository}/").partition("/")
            revision, _, name = rest.partition("/")
            if not path.startswith(f"{repository}/") or revision not in NAMES:
                continue
            files = {file.name: file.read_bytes() for file in folder.iterdir()}
            if api and verb == "revision":
                siblings = [{"rfilename": file} for file in files]
                about = {"id": repository.partition("/")[2], "sha": COMMIT, "siblings": siblings}
                return self.reply(json.dumps(about).encode())
            if api and verb == "tree":
                listing = [{"type": "file", "path": n, "size": len(data), "oid": n} for n, data in files.items()]
                return self.reply(json.dumps(listing).encode())
            if name in files:
                return self.reply(files[name], ETag=f'"{name}"')
            return self.reply(None, **{"X-Error-Code": "EntryNotFound"})
        return self.reply(None)

    do_HEAD = do_GET

    def reply(self, data: bytes | None, **headers):
        self.send_response(404 if data is None else 200)
        for name, value in {"Content-Length": str(len(data or b"")), "X-Repo-Commit": COMMIT, **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "GET" and data:
            self.wfile.write(data)

    def log_message(self, *_):
        pass
