"""What a client asks of the test's own Hub beside the Hub's interface."""

import base64
import json
import os
import urllib.request
from typing import Any


def ask(path: str, content: Any = None) -> Any:
    body = None if content is None else json.dumps(content).encode()
    asked = urllib.request.Request(os.environ["HF_ENDPOINT"] + path, body, method="GET" if body is None else "POST")
    return json.loads(urllib.request.urlopen(asked).read())


def fault(method: str, path: str, action: str, skip: int = 0, times: int = 1) -> None:
    """Arms a fault, see `Hub.fault`; `clear` takes back the one that is armed."""
    ask("/_fault", {"method": method, "path": path, "action": action, "skip": skip, "times": times})


def push(repo_id: str, files: dict[str, bytes]) -> str:
    """Returns the commit; `git push` looks at no content."""
    encoded = {path: base64.b64encode(content).decode() for path, content in files.items()}
    return str(ask("/_push", {"repo": repo_id, "files": encoded})["sha"])


def requests() -> list[str]:
    return list(ask("/_requests"))
