"""A Hugging Face hub on this machine: what its client asks to read and to commit."""

import base64
import contextlib
import hashlib
import http.server
import json
import re
import threading
import urllib.parse

TOKEN = "hf_right"
GONE = 0  # connections are closed without an answer


class Repository:
  """Commits of files by name; branches and tags name commits."""

  def __init__(self, gated=False, private=False):
    self.gated, self.private = gated, private
    self.commits, self.revisions = {}, {}

  def commit(self, files, branch="main"):
    """Adds a commit with these files only; returns its 40 digits."""
    content = repr(sorted(files.items())) + str(len(self.commits))
    sha = hashlib.sha1(content.encode()).hexdigest()
    self.commits[sha] = dict(files)
    self.revisions[branch] = sha
    return sha

  def sha(self, revision):
    """The commit of a branch, a tag or itself; None: there is none."""
    return revision if revision in self.commits else self.revisions.get(revision)


class Hub:
  """The server, as a context.

  Attributes:
    repositories: by "ORG/NAME"; data sets by "datasets/ORG/NAME".
    asked: "METHOD path" of every request, in order.
    broken: a code that answers every request, or GONE; None: it works.
    full: whether uploads are forbidden.
    at_blob: called before the content of a file is taken.
    at_commit: called before a commit is looked at.
    lost: whether a commit is made, and the connection closed without an answer.
  """

  def __init__(self):
    self.repositories, self.asked = {}, []
    self.broken, self.full, self.lost = None, False, False
    self.at_blob = self.at_commit = lambda: None
    self._blobs = {}

  def __enter__(self):
    handler = type("Handler", (_Handler,), {"hub": self})
    self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler)
    self._server.daemon_threads = True
    self.url = f"http://127.0.0.1:{self._server.server_port}"
    threading.Thread(
      target=self._server.serve_forever, args=(0.01,), daemon=True
    ).start()
    return self

  def __exit__(self, *exception):
    self._server.shutdown()
    self._server.server_close()

  def files_asked(self):
    """Names of the files that were fetched."""
    found = [re.search(r"^GET .*/resolve/[^/]+/(.*)", line) for line in self.asked]
    return sorted(match[1] for match in found if match)


@contextlib.contextmanager
def pointed_to(monkeypatch, folder):
  """A hub to which its client in this process is pointed, with an empty cache."""
  import huggingface_hub
  from huggingface_hub import file_download

  constants = huggingface_hub.constants
  for name in ("HF_TOKEN", "HUGGING_FACE_HUB_TOKEN"):
    monkeypatch.delenv(name, raising=False)
  monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder / "cache"))
  monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(folder / "assets"))
  monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(folder / "no-token"))
  monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
  with Hub() as server:
    at = f"{server.url}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    for module in (constants, file_download):  # before 1.0 the one has the other's
      monkeypatch.setattr(module, "HUGGINGFACE_CO_URL_TEMPLATE", at, raising=False)
    yield server


class _Handler(http.server.BaseHTTPRequestHandler):
  protocol_version = "HTTP/1.1"
  hub: Hub

  def log_message(self, *_):
    pass

  def answer(self, code, value=None, raw=None, **headers):
    raw = json.dumps(value).encode() if raw is None else raw
    self.send_response(code)
    self.send_header("Content-Length", str(len(raw)))
    if value is not None:
      self.send_header("Content-Type", "application/json")
    for name, text in headers.items():
      self.send_header(name.replace("_", "-"), text)
    self.end_headers()
    if self.command != "HEAD":
      self.wfile.write(raw)

  def handle_any(self):
    size = int(self.headers.get("Content-Length") or 0)
    self.body = self.rfile.read(size)
    path = urllib.parse.unquote(urllib.parse.urlparse(self.path).path)
    self.hub.asked.append(f"{self.command} {path}")
    if self.hub.broken == GONE:
      self.close_connection = True
      return
    if self.hub.broken is not None:
      self.answer(self.hub.broken, {"error": "broken"})
      return
    token = self.headers.get("Authorization", "").removeprefix("Bearer ")
    if token not in ("", TOKEN):
      said = "Invalid credentials in Authorization header"
      self.answer(401, {"error": said}, X_Error_Message=said)
      return
    self.allowed = token == TOKEN
    for pattern, act in _ROUTES:
      if match := re.fullmatch(pattern, path):
        act(self, *match.groups())
        return
    self.answer(404, {"error": f"no such page: {path}"})

  do_GET = do_HEAD = do_POST = do_PUT = handle_any

  def repository(self, name):
    found = self.hub.repositories.get(name)
    if found is None or (found.private and not self.allowed):
      self.answer(401, {"error": "not found"}, X_Error_Code="RepoNotFound")
      return None
    return found

  def commit_of(self, name, revision):
    found = self.repository(name)
    sha = found and found.sha(revision or "main")
    if found is not None and sha is None:
      self.answer(404, {"error": "revision"}, X_Error_Code="RevisionNotFound")
    return found, sha

  def info(self, kind, name, revision=None):
    name = name if kind == "models" else f"{kind}/{name}"
    found, sha = self.commit_of(name, revision)
    if sha is not None:
      siblings = [{"rfilename": name} for name in found.commits[sha]]
      self.answer(200, {"id": name, "sha": sha, "siblings": siblings, "tags": []})

  def tree(self, kind, name, revision):
    name = name if kind == "models" else f"{kind}/{name}"
    found, sha = self.commit_of(name, revision)
    if sha is not None:
      rows = [
        {"type": "file", "path": path, "size": len(raw), "oid": _digest(raw)}
        for path, raw in found.commits[sha].items()
      ]
      self.answer(200, rows)

  def paths_info(self, kind, name, revision):
    name = name if kind == "models" else f"{kind}/{name}"
    found, sha = self.commit_of(name, revision)
    if sha is not None:
      asked = urllib.parse.parse_qs(self.body.decode())["paths"]
      files = found.commits[sha]
      rows = [
        {"type": "file", "path": path, "size": len(files[path]), "oid": "0" * 40}
        for path in asked
        if path in files
      ]
      self.answer(200, rows)

  def resolve(self, name, revision, path):
    found, sha = self.commit_of(name, revision)
    if sha is None:
      return
    if found.gated and not self.allowed:
      self.answer(403, {"error": "gated"}, X_Error_Code="GatedRepo")
    elif path not in found.commits[sha]:
      self.answer(404, {"error": "file"}, X_Error_Code="EntryNotFound")
    else:
      raw = found.commits[sha][path]
      tag = f'"{_digest(raw)}"'
      self.answer(200, raw=raw, ETag=tag, X_Repo_Commit=sha)

  def whoami(self):
    if self.allowed:
      self.answer(200, {"name": "me", "type": "user", "orgs": [], "auth": {}})
    else:
      self.answer(401, {"error": "who?"})

  def create(self):
    given = json.loads(self.body)
    name = f"{given['organization']}/{given['name']}"
    private = given.get("private", given.get("visibility") == "private")  # from 2.0
    if name in self.hub.repositories:
      self.answer(409, {"error": "exists", "url": f"{self.hub.url}/{name}"})
      return
    self.hub.repositories[name] = made = Repository(private=private)
    made.commit({".gitattributes": b""})
    self.answer(200, {"url": f"{self.hub.url}/{name}", "id": name, "name": name})

  def preupload(self, _):
    files = json.loads(self.body)["files"]
    large = lambda path: path.endswith((".safetensors", ".bin"))
    rows = [
      {
        "path": file["path"],
        "uploadMode": "lfs" if large(file["path"]) else "regular",
        "shouldIgnore": False,
      }
      for file in files
    ]
    self.answer(200, {"files": rows})

  def batch(self, _):
    objects = [
      {
        "oid": one["oid"],
        "size": one["size"],
        "actions": {"upload": {"href": f"{self.hub.url}/blob/{one['oid']}"}},
      }
      for one in json.loads(self.body)["objects"]
    ]
    self.answer(200, {"transfer": "basic", "objects": objects})

  def blob(self, oid):
    self.hub.at_blob()
    if self.hub.broken == GONE:
      self.close_connection = True
      return
    if self.hub.full:
      self.answer(403, {"error": "no room"})
      return
    self.hub._blobs[oid] = self.body
    self.answer(200, {})

  def commit(self, name):
    self.hub.at_commit()
    if self.hub.broken == GONE:
      self.close_connection = True
      return
    found = self.hub.repositories[name]
    files = dict(found.commits[found.sha("main")])
    for line in map(json.loads, self.body.splitlines()):
      value = line["value"]
      if line["key"] == "header":
        if value["parentCommit"] != found.sha("main"):
          self.answer(412, {"error": "the branch has moved"})
          return
      elif line["key"] == "lfsFile":
        files[value["path"]] = self.hub._blobs[value["oid"]]
      else:
        files[value["path"]] = base64.b64decode(value["content"])
    sha = found.commit(files)
    if self.hub.lost:
      self.close_connection = True
      return
    url = f"{self.hub.url}/{name}/commit/{sha}"
    self.answer(200, {"success": True, "commitOid": sha, "commitUrl": url})

  def yaml(self):
    self.answer(200, {"errors": [], "warnings": []})


def _digest(raw):
  return hashlib.sha1(raw).hexdigest()


_NAME = r"((?:datasets/)?[^/]+/[^/]+)"
_KIND = r"/api/(models|datasets)/([^/]+/[^/]+)"
_ROUTES = [
  (_KIND, _Handler.info),
  (_KIND + r"/revision/(.+)", _Handler.info),
  (_KIND + r"/tree/([^/]+)", _Handler.tree),
  (_KIND + r"/paths-info/(.+)", _Handler.paths_info),
  (rf"/{_NAME}/resolve/([^/]+)/(.+)", _Handler.resolve),
  (r"/api/whoami-v2", _Handler.whoami),
  (r"/api/repos/create", _Handler.create),
  (r"/api/validate-yaml", _Handler.yaml),
  (r"/api/models/([^/]+/[^/]+)/preupload/main", _Handler.preupload),
  (r"/api/models/([^/]+/[^/]+)/commit/main", _Handler.commit),
  (r"/([^/]+/[^/]+)\.git/info/lfs/objects/batch", _Handler.batch),
  (r"/blob/(\w+)", _Handler.blob),
]
