"""A Hugging Face hub on this machine: as much of its HTTP interface as an upload needs."""

import base64
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKEN = "hf_nobodyMayReadThis"


class LocalHub:
    """``repos``: {name: {private, files}}, made by whoever uploads; ``asked``: every request, as "POST /api/...".

    answers: {part of a path: a status with a body}, given in the place of a real answer
    delay: seconds before any answer
    tokens: what the requests said who they are; owners: whom a repository may belong to
    """

    def __init__(self):
        self.repos, self.blobs, self.asked, self.tokens = {}, {}, [], set()
        self.answers, self.delay, self.owners, self.ignored = {}, 0.0, {"me"}, set()
        self.server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(self))
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def __enter__(self):
        threading.Thread(target=self.server.serve_forever, args=(0.01,), daemon=True).start()
        return self

    def __exit__(self, *error):
        self.server.shutdown()
        self.server.server_close()

    def put(self, name, private=True, **files):
        self.repos[name] = {"private": private, "files": dict(files)}

    def respond(self, method, path, body):
        """The status, what is answered as JSON, and the hub's own code of an error."""
        for part, status in self.answers.items():
            if part in path:
                return status, {"error": "as the test wants it"}, ""
        words = path.split("?")[0].strip("/").split("/")
        if path == "/api/repos/create":
            return self.create(json.loads(body))
        if path == "/api/validate-yaml":
            return 200, {"errors": [], "warnings": []}, ""
        if words[:1] == ["upload"] and method == "PUT":
            self.blobs[words[1]] = body
            return 200, {}, ""
        if words[2:] == ["info", "lfs", "objects", "batch"]:
            return self.batch(json.loads(body))
        name = "/".join(words[2:4])
        if words[:2] == ["api", "models"] and name in self.repos:
            return self.about(name, words[4:5], body)
        return 404, {"error": "Repository not found"}, "RepoNotFound"

    def create(self, asked):
        if asked["organization"] not in self.owners:
            return 403, {"error": "You don't have the rights to create a model under this namespace"}, ""
        name = f"{asked['organization']}/{asked['name']}"
        self.put(name, asked.get("visibility") == "private" or asked.get("private") is True)
        return 200, {"url": f"{self.url}/{name}", "name": name, "id": "1"}, ""

    def about(self, name, what, body):
        repo = self.repos[name]
        if what == ["preupload"]:
            modes = {".safetensors": "lfs"}
            found = [
                {
                    "path": file["path"],
                    "uploadMode": modes.get(file["path"][-12:], "regular"),
                    "shouldIgnore": file["path"] in self.ignored,
                    "oid": None,
                }
                for file in json.loads(body)["files"]
            ]
            return 200, {"files": found}, ""
        if what == ["commit"]:
            for line in body.splitlines():
                self.apply(repo["files"], **json.loads(line))
            return 200, {"commitUrl": f"{self.url}/{name}/commit/{'0' * 40}", "commitOid": "0" * 40}, ""
        siblings = [{"rfilename": file} for file in repo["files"]]
        return 200, {"id": name, "private": repo["private"], "siblings": siblings, "sha": "0" * 40}, ""

    def apply(self, files, key, value):
        if key == "file":
            files[value["path"]] = base64.b64decode(value["content"])
        elif key == "lfsFile":
            files[value["path"]] = self.blobs[value["oid"]]
        elif key == "deletedFile":
            del files[value["path"]]

    def batch(self, asked):
        objects = [
            {**each, "actions": {"upload": {"href": f"{self.url}/upload/{each['oid']}"}}} for each in asked["objects"]
        ]
        return 200, {"transfer": "basic", "objects": objects}, ""


def handler_of(hub):
    class Handler(BaseHTTPRequestHandler):
        def answer(self):
            length = int(self.headers.get("Content-Length") or 0)
            body = self.rfile.read(length)
            hub.asked.append(f"{self.command} {self.path}")
            if "Authorization" in self.headers:
                hub.tokens.add(self.headers["Authorization"])
            time.sleep(hub.delay)
            status, content, code = hub.respond(self.command, self.path, body)
            text = json.dumps(content).encode()
            try:
                self.send_response(status)
                if code:
                    self.send_header("X-Error-Code", code)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(text)))
                self.end_headers()
                self.wfile.write(text)
            except OSError:
                pass  # whoever asked has gone

        do_GET = do_POST = do_PUT = answer  # noqa: N815

        def log_message(self, *args):
            pass

    return Handler
