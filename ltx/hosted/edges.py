"""Who answers in place of the hosted queue, and what the operator can do; knows no socket."""

from __future__ import annotations

import re
from collections.abc import Mapping
from urllib.parse import urljoin, urlsplit

from ltx.text import one_line

TITLE = re.compile(rb"<title[^>]*>\s*([^<]*)", re.IGNORECASE)
CLOUDFLARE_CODE = re.compile(rb"error code: (\d{3,4})", re.IGNORECASE)
LOGIN = re.compile(r"log-?in|sign-?in|sso|auth|portal", re.IGNORECASE)
WRONG = "API_URL is wrong or the app is not deployed"
PROTECTED = (
    "Vercel's deployment protection asks for a login; give the production domain as API_URL, "
    "or switch the protection off"
)
# What the operator can do about an error code of Vercel's edge; the others say it themselves.
VERCEL_FIXES = {
    "NOT_FOUND": WRONG,
    "DEPLOYMENT_NOT_FOUND": WRONG,
    "DEPLOYMENT_DISABLED": "the deployment is switched off; see the Vercel dashboard",
    "DEPLOYMENT_PAUSED": "the deployment is paused; see the Vercel dashboard",
    "FUNCTION_INVOCATION_TIMEOUT": "the function took too long",
    "FUNCTION_INVOCATION_FAILED": "the function crashed; see its log in the Vercel dashboard",
}


def name_edge(status: int, headers: Mapping[str, str], body: bytes) -> str:
    """The edge, page or portal that an answer is from; '' for one that may be the API's own.

    headers: looked up in lower case.
    """
    if mitigated := headers.get("x-vercel-mitigated"):
        return f"Vercel's firewall: {one_line(mitigated, 40)}"
    if code := headers.get("x-vercel-error"):
        fix = VERCEL_FIXES.get(code, "")
        return f"Vercel's edge: {one_line(code, 60)}{f' ({fix})' if fix else ''}"
    if "_vercel_sso_nonce" in headers.get("set-cookie", ""):
        return PROTECTED
    if mitigated := headers.get("cf-mitigated"):
        return f"Cloudflare's firewall: {one_line(mitigated, 40)}"
    if found := CLOUDFLARE_CODE.match(body.strip()):
        return f"Cloudflare: error code {found[1].decode()}"
    if status == 511:
        return "the network's captive portal asks for a login"
    return ""


def is_edge(status: int, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether it is certain that the app never saw the call; Vercel's NOT_FOUND is its routes'."""
    missing = headers.get("x-vercel-error") == "NOT_FOUND"
    return bool(name_edge(status, headers, body)) and not missing


def describe_answer(
    status: int, headers: Mapping[str, str], body: bytes, kind: str, call: str = ""
) -> str:
    """An answer that is no verdict, in words; kind: of `Reply.kind`."""
    if edge := name_edge(status, headers, body):
        return f"status {status}, {edge}"
    server = f", from {one_line(headers['server'], 40)}" if headers.get("server") else ""
    if kind != "page":
        told = one_line(body.decode(errors="replace"), 200) or "without a word"
        hint = f" ({WRONG})" if status == 404 and call == "pending" else ""
        return f"status {status}: {told}{hint}"
    title = TITLE.search(body)
    name = f' "{one_line(title[1].decode(errors="replace").strip(), 60)}"' if title else ""
    hint = ""
    if status < 300:
        hint = ": a login page or a captive portal, or API_URL is not the API's"
    elif status == 404:
        hint = f": {WRONG}"
    return f"status {status}, a web page{name}{server}{hint}"


def describe_redirect(asked: str, path: str, location: str) -> str:
    """Where a redirect leads and what to do.

    asked: the whole address; path: its part behind API_URL, such as /api/videogen/pending.
    """
    target = one_line(location, 100)
    try:
        here, there = urlsplit(asked), urlsplit(urljoin(asked, location))
    except ValueError:
        return f"it redirects to {target}, which is no address"
    if there._replace(query="") == here._replace(query=""):
        return "it redirects to the same address; something in between wants a browser"
    if there.path.endswith(path) and there.hostname:
        base = f"{there.scheme}://{there.netloc}{there.path.removesuffix(path)}"
        return f"it redirects to {target}; set API_URL={one_line(base)}"
    if there.path == f"{here.path}/":
        return f"it redirects to {target}; the app must answer without a slash at the end"
    if there.hostname == "vercel.com":
        return f"it redirects to {target}; {PROTECTED}"
    if LOGIN.search(f"{there.hostname}{there.path}"):
        return f"it redirects to {target}, a login page or a captive portal"
    return f"it redirects to {target}; API_URL is not the API's, or a captive portal is in between"
