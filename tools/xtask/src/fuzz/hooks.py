"""What schemathesis does differently for Gantry's API; it is loaded into every pass.

In: GANTRY_FUZZ, a JSON file that names the pass, the file with its token (never the token itself) and
ids that must outlive the run. Out: two checks beside schemathesis' own, and requests that stay on this
machine. Must not make a wrong answer look right: whatever is let through is said in the document.
"""

import atexit
import json
import os
import random
import re
from pathlib import Path
from urllib.parse import quote, urlsplit

import schemathesis
import urllib3.util.connection as connections

PASS = json.loads(Path(os.environ["GANTRY_FUZZ"]).read_text())
NAME = PASS["name"]
HEADER = {}
if PASS["token_file"]:
    HEADER["Authorization"] = "Bearer " + Path(PASS["token_file"]).read_text().strip()

RANKS = {"viewer": 0, "operator": 1, "admin": 2}
ID = re.compile("[0-9a-f]{32}")
# Nothing listens there.
NOWHERE = "127.0.0.1:1"

# gantryd counts wrong tokens and invitations by address. A request from another loopback address each
# time meets the handler instead of the limit.
connect = connections.create_connection
# Hypothesis seeds the module's own generator anew for each example.
chance = random.SystemRandom()


def connect_from_anywhere(address, timeout=None, source_address=None, socket_options=None):
    parts = [chance.randrange(1, 255) for _ in range(3)]
    source = "127." + ".".join(map(str, parts))
    return connect(address, timeout, (source, 0), socket_options)


connections.create_connection = connect_from_anywhere


def spared(value):
    return "0" * 32 if value in PASS["keep"] else value


@schemathesis.hook
def before_call(context, case, kwargs):
    """The pass's own token, or none, whatever was generated; what the run lives on is not deleted."""
    values = case.path_parameters or {}
    case.path_parameters = {name: spared(value) for name, value in values.items()}
    case.headers.pop("Authorization", None)
    case.headers.update(HEADER)
    if "security" not in case.operation.definition.raw:
        case.headers["Connection"] = "close"


@schemathesis.hook
def map_path_parameters(context, path_parameters):
    """Ids that exist, half of the time."""
    values = dict(path_parameters or {})
    for name, value in values.items():
        known = PASS["known"].get(kind_of(context, name), [])
        if known and isinstance(value, str) and ID.fullmatch(value) and int(value[-1], 16) % 2:
            values[name] = known[int(value[-2], 16) % len(known)]
    return values


def kind_of(context, name):
    """Of which records a parameter is the id: `/api/v1/KIND/{id}`."""
    parts = context.operation.path.split("/")
    at = parts.index("{" + name + "}") if "{" + name + "}" in parts else 0
    return parts[at - 1] if at else ""


@schemathesis.hook
def map_body(context, body):
    """An address that could be one leads nowhere: no request leaves this machine."""
    if not isinstance(body, dict):
        return body
    for field in ("url", "address"):
        if isinstance(body.get(field), str):
            body = {**body, field: nowhere(body[field])}
    return body


def nowhere(text):
    try:
        url = urlsplit(text)
        return url._replace(netloc=NOWHERE).geturl() if url.hostname else text
    except ValueError:
        return text


def needed_role(case):
    """What the operation says that it needs; nothing: it is public."""
    raw = case.operation.definition.raw
    return raw["x-gantry-role"] if raw.get("security") else None


def meets_its_route(case, response):
    """Whether the request has the operation's method and path at all."""
    method = case.operation.method.upper()
    if response.request.method not in (method, "HEAD" if method == "GET" else method):
        return False
    values = (case.path_parameters or {}).values()
    return all(str(value) not in ("", ".", "..") and "/" not in str(value) for value in values)


@schemathesis.check
def server_errors_are_documented(ctx, response, case):
    """A 5xx only where the document names it: another machine fails. Never 500."""
    status = response.status_code
    if status < 500:
        return
    named = case.operation.definition.raw["responses"]
    assert str(status) in named, f"{status} is not among this operation's answers: {response.text}"
    fault = response.json().get("fault")
    assert fault in ("source", "network", "target", "refused"), f"{status} with fault {fault}"


MET = set()


@atexit.register
def tell_what_was_met():
    Path(PASS["met"]).write_text(json.dumps(sorted(MET)))


@schemathesis.check
def roles_are_enforced(ctx, response, case):
    """401 without a token, 403 with too low a role; both before anything else is looked at."""
    MET.add(case.operation.definition.raw["operationId"])
    role, status = needed_role(case), response.status_code
    if role is None:
        return
    if not meets_its_route(case, response):
        # Another path or method: it may be another operation's, but nobody gets in there either.
        if NAME in ("nobody", "stranger"):
            assert status in (400, 401, 404, 405, 414, 429, 431), f"{status} without a valid token"
        return
    if NAME in ("nobody", "stranger"):
        expected = (401,) if NAME == "nobody" else (401, 429)
        assert status in expected, f"{status} instead of 401: {response.text[:300]}"
    elif RANKS[NAME] < RANKS[role]:
        assert status == 403, f"{status} instead of 403: {response.text[:300]}"
    else:
        assert status not in (401, 403), f"{status} with a token of role {NAME}"
