"""Edges by name: how frameworks, firewalls, portals and gateways answer in place of the API."""

from __future__ import annotations

from typing import Any

LANDS = {"lands": True}


def page(title: str) -> str:
    return f"<!doctype html><html><head><title>{title}</title></head><body>{title}</body></html>"


def vercel(status: int, code: str, text: str = "An error occurred with your deployment") -> Any:
    headers = {"server": "Vercel", "x-vercel-error": code}
    return {"status": status, "body": f"{text}\n\n{code}\n\nfra1::x9k2-1", "headers": headers}


def no_route(message: str) -> Any:
    return {"status": 404, "body": {"message": message, "error": "Not Found", "statusCode": 404}}


# {method} and {path} stand for those of the request.
MISSING: dict[str, dict[str, Any]] = {
    "next: no route": {"status": 404, "body": page("404: This page could not be found.")},
    "next: no method": {"status": 405, "body": ""},
    "express: no route": {"status": 404, "body": "<pre>Cannot {method} {path}</pre>"},
    "fastify: no route": no_route("Route {method}:{path} not found"),
    "nest: no route": no_route("Cannot {method} {path}"),
    "vercel: no route": vercel(404, "NOT_FOUND", "The page could not be found"),
}
DENIALS: dict[str, dict[str, Any]] = {
    "vercel: firewall": {
        "status": 403,
        "body": "Forbidden",
        "headers": {"server": "Vercel", "x-vercel-mitigated": "deny"},
    },
    "vercel: challenge": {
        "status": 429,
        "body": page("Vercel Security Checkpoint"),
        "headers": {"server": "Vercel", "x-vercel-mitigated": "challenge"},
    },
    "vercel: protection": {
        "status": 401,
        "body": page("Authentication Required"),
        "headers": {"server": "Vercel", "set-cookie": "_vercel_sso_nonce=a; Path=/"},
    },
    "vercel: paused": vercel(503, "DEPLOYMENT_PAUSED"),
    "vercel: no deployment": vercel(404, "DEPLOYMENT_NOT_FOUND", "The deployment is gone"),
    "cloudflare: rule": {
        "status": 403,
        "body": "error code: 1020",
        "headers": {"server": "cloudflare"},
    },
    "cloudflare: challenge": {
        "status": 403,
        "body": page("Just a moment..."),
        "headers": {"server": "cloudflare", "cf-mitigated": "challenge"},
    },
    "cloudflare: no origin": {
        "status": 522,
        "body": page("Connection timed out"),
        "headers": {"server": "cloudflare"},
    },
    "nothing but 403": {"status": 403, "body": ""},
    "rate limit": {"status": 429, "body": "Too many", "headers": {"Retry-After": "1"}},
    "nginx: bad gateway": {
        "status": 502,
        "body": page("502 Bad Gateway"),
        "headers": {"server": "nginx"},
    },
    "portal: 511": {"status": 511, "body": page("Log in to this network")},
    "portal: redirect": {"redirect": "http://10.0.0.1/hotspot?to=here"},
    "login: redirect": {"redirect": "/login?next={path}"},
    "vercel: login": {"redirect": "https://vercel.com/sso-api?url=x"},
    "slash": {"redirect": "{path}/", "status": 308},
    "www": {"redirect": "https://www.example.com{path}", "status": 308},
}
# The call was done, and what tells of it is lost on the way.
LOST: dict[str, dict[str, Any]] = {
    "vercel: time-out": {**vercel(504, "FUNCTION_INVOCATION_TIMEOUT"), **LANDS},
    "gateway time-out": {"status": 504, "body": "", **LANDS},
    "cloudflare: time-out": {
        "status": 524,
        "body": page("A timeout occurred"),
        "headers": {"server": "cloudflare"},
        **LANDS,
    },
}
# The call was done, and its answer has no JSON, or none that was asked for.
SUCCESSES: dict[str, dict[str, Any]] = {
    "200 text": {"status": 200, "body": "OK", **LANDS},
    "200 page": {"status": 200, "body": page("Done"), **LANDS},
    "200 null": {"status": 200, "body": None, **LANDS},
    "201 list": {"status": 201, "body": [], **LANDS},
    "204": {"status": 204, "body": "", **LANDS},
}
REFUSALS: dict[str, dict[str, Any]] = {
    "401": {"status": 401, "body": {"error": "unauthorized"}},
    "401 text": {"status": 401, "body": "Unauthorized"},
    "403": {"status": 403, "body": {"error": "forbidden"}},
}
EDGES = {**MISSING, **DENIALS, **LOST, **SUCCESSES, **REFUSALS}
