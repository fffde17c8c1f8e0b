"""A server on this machine that speaks as much of Google Cloud Storage's JSON API as gcsfs, google-cloud-storage and
TensorStore use: media, multipart and resumable uploads, ranges, generations and their preconditions, lists with prefix,
delimiter, offsets and pages, copies, batches of deletions. It can be told to misbehave."""

import email
import json
import re
import threading
import time
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, unquote, urlsplit

PAGE = 50  # objects of a page of a list, few enough that clients meet more than one


class Store:
    """Buckets of objects, and what the server does wrong: `unavailable` answers so many requests with 503; `stall_s` holds the
    next upload for so long; `forbidden` refuses everything."""

    def __init__(self):
        self.buckets: dict[str, dict[str, tuple[bytes, int]]] = {}
        self.uploads: dict[str, tuple[str, str, bytes]] = {}
        self.lock = threading.RLock()
        self.generation = 1000
        self.unavailable = 0
        self.stall_s = 0.0
        self.forbidden = False
        self.requests = 0

    def put(self, bucket: str, name: str, data: bytes) -> dict:
        with self.lock:
            self.generation += 1
            self.buckets[bucket][name] = (data, self.generation)
        return self.metadata(bucket, name)

    def metadata(self, bucket: str, name: str) -> dict:
        data, generation = self.buckets[bucket][name]
        return {
            "kind": "storage#object",
            "id": f"{bucket}/{name}/{generation}",
            "name": name,
            "bucket": bucket,
            "size": str(len(data)),
            "generation": str(generation),
            "metageneration": "1",
            "timeCreated": "2026-01-01T00:00:00.000Z",
            "updated": "2026-01-01T00:00:00.000Z",
            "contentType": "application/octet-stream",
            "storageClass": "STANDARD",
        }

    def list(self, bucket: str, q: dict) -> dict:
        prefix, delimiter = q.get("prefix", ""), q.get("delimiter", "")
        start, end = q.get("startOffset", ""), q.get("endOffset", "")
        limit = min(int(q.get("maxResults", PAGE)), PAGE)
        with self.lock:
            names = sorted(name for name in self.buckets[bucket] if name.startswith(prefix))
        names = [name for name in names if name >= start and (not end or name < end)]
        entries: dict[str, bool] = {}  # name or common prefix -> whether it is an object
        for name in names:
            cut = name.find(delimiter, len(prefix)) if delimiter else -1
            entries[name if cut < 0 else name[: cut + len(delimiter)]] = cut < 0
        keys = [key for key in entries if key > q.get("pageToken", "")]
        page = keys[:limit]
        answer = {"kind": "storage#objects"}
        with self.lock:
            answer["items"] = [self.metadata(bucket, key) for key in page if entries[key] and key in self.buckets[bucket]]
        answer["prefixes"] = [key for key in page if not entries[key]]
        if len(keys) > limit:
            answer["nextPageToken"] = page[-1]
        return answer


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    store: Store

    def log_message(self, *args) -> None:
        pass

    def do_GET(self) -> None:
        self.answer("GET")

    def do_POST(self) -> None:
        self.answer("POST")

    def do_PUT(self) -> None:
        self.answer("PUT")

    def do_DELETE(self) -> None:
        self.answer("DELETE")

    def answer(self, method: str) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0)) or self._chunks()
        store = self.store
        with store.lock:
            store.requests += 1
            refuse = store.unavailable > 0
            store.unavailable -= refuse
            stall, store.stall_s = (store.stall_s, 0.0) if method in ("POST", "PUT") else (0.0, store.stall_s)
        if stall:
            time.sleep(stall)
        if refuse:
            return self.send(503, b"backend error")
        if store.forbidden:
            return self.reply(403, {"error": {"code": 403, "message": "the account does not have storage.objects access"}})
        try:
            status, payload, headers = self.route(method, self.path, body, self.headers)
        except KeyError:
            status, payload, headers = 404, {"error": {"code": 404, "message": "Not Found"}}, {}
        except Exception as error:  # a request that this server does not know: the test should see which
            status, payload, headers = 501, {"error": {"code": 501, "message": f"{method} {self.path}: {error!r}"}}, {}
        if isinstance(payload, bytes):
            self.send(status, payload, headers)
        else:
            self.reply(status, payload, headers)

    def _chunks(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return b""
        data = b""
        while size := int(self.rfile.readline().strip() or b"0", 16):
            data += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return data

    def reply(self, status: int, value, headers=None) -> None:
        self.send(status, json.dumps(value).encode(), {"Content-Type": "application/json"} | (headers or {}))

    def send(self, status: int, data: bytes, headers=None) -> None:
        try:
            self.send_response(status)
            for name, value in (headers or {}).items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(data)))
            self.end_headers()
            self.wfile.write(data)
        except (BrokenPipeError, ConnectionResetError):  # the client was killed
            self.close_connection = True

    def route(self, method: str, target: str, body: bytes, headers) -> tuple[int, object, dict]:
        url = urlsplit(target)
        q = {key: values[0] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
        path = url.path.replace("/download/storage", "/storage")
        if path.startswith("/batch"):
            return self.batch(body, headers)
        if match := re.fullmatch(r"/(?:resumable/)?upload/storage/v1/b/([^/]+)/o", path):
            return self.upload(method, unquote(match[1]), q, body, headers)
        if path in ("/storage/v1/b", "/storage/v1/b/"):
            if method == "POST":
                name = json.loads(body)["name"]
                self.store.buckets.setdefault(name, {})
                return 200, {"kind": "storage#bucket", "name": name}, {}
            return 200, {"items": [{"name": name} for name in self.store.buckets]}, {}
        match = re.fullmatch(r"/storage/v1/b/([^/]+)(/.*)?", path)
        bucket, rest = unquote(match[1]), match[2] or ""
        objects = self.store.buckets[bucket]
        if rest == "":
            return 200, {"kind": "storage#bucket", "name": bucket, "location": "HERE", "locationType": "region"}, {}
        if rest == "/storageLayout":
            return 200, {"bucket": bucket, "hierarchicalNamespace": {"enabled": False}}, {}
        if rest in ("/o", "/o/"):
            return 200, self.store.list(bucket, q), {}
        if match := re.fullmatch(r"/o/([^/]+)/(?:rewriteTo|copyTo)/b/([^/]+)/o/([^/]+)", rest):
            data, _ = objects[unquote(match[1])]
            made = self.store.put(unquote(match[2]), unquote(match[3]), data)
            size = str(len(data))
            done = {"done": True, "resource": made, "totalBytesRewritten": size, "objectSize": size}
            return 200, done if "rewriteTo" in rest else made, {}
        name = unquote(rest.removeprefix("/o/"))
        if method == "DELETE":
            with self.store.lock:
                del objects[name]
            return 204, b"", {}
        data, generation = objects[name]
        if failed := _precondition(q, generation):
            return failed, b"", {}  # 304 has no body
        if q.get("alt") != "media":
            return 200, self.store.metadata(bucket, name), {}
        return self.media(data, generation, headers)

    def media(self, data: bytes, generation: int, headers) -> tuple[int, bytes, dict]:
        about = {"X-Goog-Generation": str(generation), "ETag": f'"{generation}"', "Content-Type": "application/octet-stream"}
        match = re.fullmatch(r"bytes=(\d*)-(\d*)", headers.get("Range", ""))
        if not match:
            return 200, data, about
        first, last = match[1], match[2]
        if not first:
            first, last = max(0, len(data) - int(last)), len(data) - 1
        first, last = int(first), min(int(last) if last not in ("", None) else len(data) - 1, len(data) - 1)
        if first >= len(data):
            return 416, b"", about | {"Content-Range": f"bytes */{len(data)}"}
        return 206, data[first : last + 1], about | {"Content-Range": f"bytes {first}-{last}/{len(data)}"}

    def upload(self, method: str, bucket: str, q: dict, body: bytes, headers) -> tuple[int, object, dict]:
        store, kind = self.store, q.get("uploadType")
        objects = store.buckets[bucket]
        if "upload_id" in q:  # a part of a resumable upload
            _, name, have = store.uploads[q["upload_id"]]
            match = re.fullmatch(r"bytes (?:(\d+)-(\d+)|\*)/(\d+|\*)", headers.get("Content-Range", ""))
            have = have[: int(match[1])] + body if match and match[1] else have + body
            store.uploads[q["upload_id"]] = (bucket, name, have)
            if match and (match[3] == "*" or int(match[3]) > len(have)):
                return 308, b"", {"Range": f"bytes=0-{len(have) - 1}"} if have else {}
            return 200, store.put(bucket, name, have), {}
        if kind == "multipart":
            message = email.message_from_bytes(b"Content-Type: " + headers["Content-Type"].encode() + b"\r\n\r\n" + body)
            about, content = message.get_payload()
            name = json.loads(about.get_payload())["name"]
            data = content.get_payload(decode=True)
            boundary = re.search(r'boundary="?([^";]+)', headers["Content-Type"])[1].encode()
            data = body.split(b"--" + boundary)[2].split(b"\r\n\r\n", 1)[1].removesuffix(b"\r\n")  # email would mend newlines
        elif kind == "resumable":
            name = q.get("name") or json.loads(body)["name"]
            with store.lock:
                identity = str(len(store.uploads) + 1)
                store.uploads[identity] = (bucket, name, b"")
            place = f"http://{headers['Host']}/upload/storage/v1/b/{bucket}/o?uploadType=resumable&upload_id={identity}"
            return 200, b"", {"Location": place, "X-GUploader-UploadID": identity}
        else:
            name, data = q["name"], body
        if failed := _precondition(q, objects[name][1] if name in objects else 0):
            return failed, b"", {}  # 304 has no body
        return 200, store.put(bucket, name, data), {}

    def batch(self, body: bytes, headers) -> tuple[int, bytes, dict]:
        boundary = re.search(r'boundary="?([^";]+)', headers["Content-Type"])[1]
        answers = []
        for part in body.decode().split(f"--{boundary}")[1:-1]:
            identity = re.search(r"(?i)content-id: *<?([^>\r\n]*)>?", part)
            method, target = re.search(r"(GET|DELETE|POST|PATCH) (\S+) HTTP", part).groups()
            try:
                status, _, _ = self.route(method, urlsplit(target)._replace(scheme="", netloc="").geturl(), b"", {})
            except KeyError:
                status = 404
            about = f"Content-ID: <response-{identity[1] if identity else ''}>\r\n"
            answers.append(f"--answer\r\nContent-Type: application/http\r\n{about}\r\nHTTP/1.1 {status} x\r\n\r\n\r\n")
        return 200, ("".join(answers) + "--answer--\r\n").encode(), {"Content-Type": "multipart/mixed; boundary=answer"}


def _precondition(q: dict, generation: int) -> int:
    if "ifGenerationMatch" in q and int(q["ifGenerationMatch"]) != generation:
        return 412
    return 304 if "ifGenerationNotMatch" in q and int(q["ifGenerationNotMatch"]) == generation else 0


@contextmanager
def serving(bucket: str):
    """(store, environment of its clients) of a server that runs while the block does."""
    store = Store()
    store.buckets[bucket] = {}
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("BoundHandler", (Handler,), {"store": store}))
    server.daemon_threads = True
    server.handle_error = lambda *_: None  # of connections that a killed client left
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"http://127.0.0.1:{server.server_address[1]}"
    env = {
        "STORAGE_EMULATOR_HOST": address,
        "TENSORSTORE_GCS_HTTP_URL": address,
        "GOOGLE_CLOUD_PROJECT": "test",
        "NO_GCE_CHECK": "true",
        "GCE_METADATA_HOST": "127.0.0.1:1",
    }
    try:
        yield store, env
    finally:
        server.shutdown()
        server.server_close()
