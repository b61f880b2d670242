"""Runs schemathesis over gantryd's own document, once for each kind of caller.

In: one JSON file: where the API is, its authority, the first administrator's token, a private folder,
seconds and a seed. Out: exit code 0 if every pass holds, else 1 after all of them. Passes, in order:
nobody (no token), stranger (a wrong one), viewer, operator, admin. The first three must leave the
configuration as it was. Must not: put a token on a command line or into the environment.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import requests

HERE = Path(__file__).parent
REQUEST_SECONDS_MAX = 100
CHECKS = [
    "server_errors_are_documented",
    "roles_are_enforced",
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "response_schema_conformance",
]
# Each pass and its share of the time.
PASSES = [("nobody", 0.1), ("stranger", 0.1), ("viewer", 0.2), ("operator", 0.2), ("admin", 0.4)]
READ_ONLY = ("nobody", "stranger", "viewer")
LISTS = ["export", "settings", "enrolments", "movers", "sessions?limit=500"]


class Site:
    """gantryd, asked as its first administrator."""

    def __init__(self, facts):
        self.facts = facts
        self.folder = Path(facts["folder"])
        self.session = requests.Session()
        self.session.verify = facts["ca"]
        self.session.trust_env = False
        token = Path(facts["token_file"]).read_text().strip()
        self.session.headers["Authorization"] = f"Bearer {token}"

    def ask(self, method, path, body=None):
        url = f"{self.facts['api']}/api/v1/{path}"
        answer = self.session.request(method, url, json=body, timeout=REQUEST_SECONDS_MAX)
        if not answer.ok:
            raise SystemExit(f"{method} {path}: {answer.status_code}: {answer.text}")
        return answer.json()

    def state(self):
        """All that a caller could have changed; a token's last use is no change."""
        state = {name: self.ask("GET", name) for name in LISTS}
        tokens = self.ask("GET", "tokens")["items"]
        state["tokens"] = [{**token, "last_used_ms": None} for token in tokens]
        return state

    def seed(self):
        """Something to meet: records and a session that fails, since nothing answers its vCenter."""
        trust = {"thumbprint": "ab" * 32}
        vcenter = {"name": "fuzz", "url": "https://127.0.0.1:1", "user": "fuzz", "trust": trust}
        vcenter = self.ask("POST", "vcenters", {**vcenter, "password": "fuzz"})["id"]
        credential = {"name": "fuzz", "user": "fuzz", "password": "fuzz"}
        self.ask("POST", "credentials", credential)
        self.ask("POST", "enrolments", {"mover": "fuzz", "role": "proxy"})
        pin = {"mover": "ab" * 32}
        self.ask("POST", "proxies", {"name": "fuzz", **pin})
        repository = {"name": "fuzz", "address": "gantry://127.0.0.1:1", **pin}
        repository["repository_id"] = "cd" * 16
        repository = self.ask("POST", "repositories", repository)["id"]
        job = {"name": "fuzz", "vcenter": vcenter, "repository": repository}
        job["selection"] = {"patterns": ["*"]}
        job["retries"] = {"count": 0, "pause_seconds": 0}
        job = self.ask("POST", "jobs", job)["id"]
        session = self.ask("POST", f"jobs/{job}/start", {})["id"]
        until = time.monotonic() + REQUEST_SECONDS_MAX
        while self.ask("GET", f"sessions/{session}")["ended_ms"] is None:
            if time.monotonic() > until:
                raise SystemExit("a session whose vCenter does not answer goes on")
            time.sleep(0.1)

    def secret_file(self, name, text):
        path = self.folder / name
        path.touch(mode=0o600)
        path.write_text(text)
        return str(path)

    def tokens(self):
        """A file with a token for each pass that has one; ids that the run must not delete."""
        keep = [token["id"] for token in self.ask("GET", "tokens")["items"]]
        files = {"nobody": None, "stranger": self.secret_file("stranger.token", "gantry_" + "0" * 64)}
        for role in ("viewer", "operator", "admin"):
            made = self.ask("POST", "tokens", {"name": f"fuzz-{role}", "role": role})
            files[role] = self.secret_file(f"{role}.token", made["text"])
            keep.append(made["token"]["id"])
        return files, keep

    def known(self):
        """Ids that exist, by the first part of their path."""
        found = {}
        for kind in ("vcenters", "proxies", "repositories", "jobs", "sessions", "credentials"):
            found[kind] = [one["id"] for one in self.ask("GET", kind)["items"]]
        return found


def run_pass(site, name, seconds, token_file, keep):
    facts = {"name": name, "token_file": token_file, "keep": keep, "known": site.known()}
    facts["met"] = str(site.folder / f"{name}.met")
    named = site.folder / f"{name}.json"
    named.write_text(json.dumps(facts))
    schemathesis = Path(sys.executable).parent / "st"
    command = [schemathesis, "run", site.folder / "openapi.json", "--url", site.facts["api"]]
    command += ["--tls-verify", site.facts["ca"], "--seed", site.facts["seed"]]
    command += ["--max-time", max(1, round(seconds)), "--max-examples", 1000, "--no-color"]
    command += ["--checks", ",".join(CHECKS), "--continue-on-failure", "--warnings", "off"]
    command += ["--generation-database", "none", "--suppress-health-check", "all"]
    command += ["--request-timeout", REQUEST_SECONDS_MAX]
    wanted = {one["operationId"] for path in site.paths.values() for one in path.values()}
    if token_file and name != "stranger":
        # An answer without an end: its own tests read it.
        command += ["--exclude-operation-id", "session_stream"]
        wanted.discard("session_stream")
    environment = {**os.environ, "SCHEMATHESIS_HOOKS": "hooks", "PYTHONPATH": str(HERE)}
    environment |= {"GANTRY_FUZZ": str(named), "PYTHONDONTWRITEBYTECODE": "1"}
    command = [str(word) for word in command]
    if subprocess.run(command, cwd=site.folder, env=environment).returncode != 0:
        return "see above"
    # schemathesis counts a run without requests as a good one.
    missed = wanted - set(json.loads(Path(facts["met"]).read_text()))
    return f"not asked, give more seconds: {', '.join(sorted(missed))}" if missed else None


def main():
    facts = json.loads(Path(sys.argv[1]).read_text())
    site = Site(facts)
    document = site.ask("GET", "openapi.json")
    site.paths = document["paths"]
    (site.folder / "openapi.json").write_text(json.dumps(document))
    site.seed()
    files, keep = site.tokens()
    wrong = []
    for name, share in PASSES:
        before = site.state() if name in READ_ONLY else None
        print(f"==> pass {name}", flush=True)
        fault = run_pass(site, name, share * facts["seconds"], files[name], keep)
        if fault:
            wrong.append(f"{name}: {fault}")
        if before is not None and site.state() != before:
            wrong.append(f"{name}: the configuration is not what it was before the pass")
    site.state()
    for line in wrong:
        print(f"FAILED: pass {line}", file=sys.stderr)
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
