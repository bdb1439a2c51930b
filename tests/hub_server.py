"""A local HTTP server with as much of the Hub's protocol as loading and publishing need, and faults on demand."""

import hashlib
import json
import re
import threading
from collections import Counter
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import unquote

COMMIT = "c0ffee" * 6 + "beef"
_RESOLVE = re.compile(r"^/([\w.-]+/[\w.-]+)/resolve/([^/]+)/(.+)$")


class Hub:
    """What the server offers and what it saw.

    Attributes:
        repos: files of each repository, by repository and name.
        gated, private: repositories that need a token.
        cut: for file names, after how many bytes the connection is dropped, once for each number.
        fail: for file names, the HTTP status they are answered with.
        damage: file names whose content is served with a flipped byte, under the hash of the original.
        requests: (method, path, range) of what was asked for.
        uploads: files of the commits that were received, by repository.
    """

    def __init__(self):
        self.repos = {}
        self.gated = set()
        self.private = set()
        self.cut = {}
        self.damage = set()
        self.fail = {}
        self.requests = []
        self.uploads = {}
        self.blobs = {}
        self.url = ""

    def add(self, repo, folder):
        self.repos[repo] = {path.name: path.read_bytes() for path in sorted(folder.iterdir())}

    def count(self, method, ending):
        return Counter((m, p.rpartition("/")[2]) for m, p, _ in self.requests)[method, ending]


def _etag(name, data):
    if name.endswith((".safetensors", ".bin")):
        return hashlib.sha256(data).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def log_message(self, *args):
        pass

    def do_HEAD(self):
        self._resolve(body=False)

    def do_GET(self):
        self._resolve(body=True)

    def _resolve(self, body):
        hub, path = self.hub, unquote(self.path.partition("?")[0])
        hub.requests.append((self.command, path, self.headers.get("Range")))
        match = _RESOLVE.match(path)
        about = re.match(r"^/api/models/([\w.-]+/[\w.-]+)/revision/main$", path)
        if about and about[1] in hub.uploads:
            return self._json({"id": about[1], "xetEnabled": False})
        if match is None:
            return self._refuse(404, "EntryNotFound", body)
        repo, revision, name = match.groups()
        authorized = self.headers.get("Authorization") == "Bearer hf_good"
        if repo not in hub.repos or (repo in hub.private and not authorized):
            return self._refuse(404, "RepoNotFound", body)
        if repo in hub.gated and not authorized:
            return self._refuse(403, "GatedRepo", body)
        if revision not in ("main", "v1", COMMIT):
            return self._refuse(404, "RevisionNotFound", body)
        if name in hub.fail:
            return self._refuse(hub.fail[name], "", body)
        if name not in hub.repos[repo]:
            return self._refuse(404, "EntryNotFound", body)
        data = hub.repos[repo][name]
        etag, start = _etag(name, data), 0
        if name in hub.damage:
            data = data[:-1] + bytes([data[-1] ^ 1])
        asked = re.match(r"bytes=(\d+)-", self.headers.get("Range") or "")
        if asked:
            start = int(asked[1])
        self.send_response(206 if asked else 200)
        self.send_header("ETag", f'"{etag}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("X-Linked-Size", str(len(data)))
        self.send_header("X-Linked-Etag", f'"{etag}"')
        self.send_header("Accept-Ranges", "bytes")
        if asked:
            self.send_header("Content-Range", f"bytes {start}-{len(data) - 1}/{len(data)}")
        self.send_header("Content-Length", str(len(data) - start))
        self.end_headers()
        if body:
            cuts = hub.cut.get(name)
            if cuts:
                self.wfile.write(data[start : start + cuts.pop(0)])
                self.wfile.flush()
                self.close_connection = True
                return None
            self.wfile.write(data[start:])
        return None

    def _refuse(self, status, code, body):
        text = json.dumps({"error": code}).encode() if body else b""
        self.send_response(status)
        self.send_header("X-Error-Code", code)
        self.send_header("X-Error-Message", f"the test server says {code}")
        if code == "EntryNotFound":
            self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)

    def do_POST(self):
        hub, path = self.hub, unquote(self.path)
        hub.requests.append(("POST", path, None))
        data = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        if self.headers.get("Authorization") != "Bearer hf_good":
            return self._refuse(401, "Unauthorized", True)
        if path.endswith("/api/repos/create"):
            repo = json.loads(data)
            name = "/".join(filter(None, (repo.get("organization"), repo["name"])))
            hub.uploads.setdefault(name, {})
            return self._json({"url": f"{hub.url}/{name}"})
        if "/preupload/" in path:
            files = json.loads(data)["files"]
            modes = [
                {"path": f["path"], "uploadMode": "lfs" if f["path"].endswith(".safetensors") else "regular"}
                for f in files
            ]
            return self._json({"files": [{**mode, "shouldIgnore": False, "oid": None} for mode in modes]})
        if path.endswith("/info/lfs/objects/batch"):
            objects = [
                {"oid": o["oid"], "size": o["size"], "actions": {"upload": {"href": f"{hub.url}/blob/{o['oid']}"}}}
                for o in json.loads(data)["objects"]
            ]
            return self._json({"transfer": "basic", "objects": objects})
        if "/commit/" in path:
            repo = re.match(r"/api/models/(.+)/commit/", path)[1]
            for line in data.splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    import base64

                    hub.uploads[repo][entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
                elif entry["key"] == "lfsFile":
                    hub.uploads[repo][entry["value"]["path"]] = hub.blobs[entry["value"]["oid"]]
            return self._json(
                {
                    "success": True,
                    "commitUrl": f"{hub.url}/{repo}/commit/{COMMIT}",
                    "commitOid": COMMIT,
                    "hookOutput": "",
                }
            )
        if path.endswith("/validate-yaml"):
            return self._json({"errors": [], "warnings": []})
        return self._refuse(404, "EntryNotFound", True)

    def do_PUT(self):
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.hub.requests.append(("PUT", self.path, None))
        self.hub.blobs[hashlib.sha256(data).hexdigest()] = data
        self._json({})

    def _json(self, value):
        text = json.dumps(value).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


@contextmanager
def serve():
    """A running server, with nothing in it."""
    hub = Hub()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
