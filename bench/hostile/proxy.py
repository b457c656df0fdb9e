"""Stands between the worker and the hosted side, and spoils what it is told to spoil."""

from __future__ import annotations

import threading
from collections import Counter
from urllib.parse import urlsplit

import requests

from sandbox.evil import Act, Evil, Talk, answer


class Proxy(Evil):
    """Stands before the API and Blob, and spoils the calls it is told to spoil."""

    def __init__(self, target: str) -> None:
        super().__init__()
        self.target = target
        self.rules: list[tuple[str, Act, threading.Event]] = []
        self.passed: Counter[str] = Counter()
        self.news = threading.Condition()

    def spoil(self, call: str, act: Act) -> threading.Event:
        """The next call like `PATCH /claim` is answered so; the event tells that it was."""
        done = threading.Event()
        self.rules.append((call, act, done))
        return done

    def await_next(self, call: str, timeout: float) -> bool:
        """Waits until another such call has passed."""
        before = self.passed[call]
        with self.news:
            return self.news.wait_for(lambda: self.passed[call] > before, timeout)

    def act(self, talk: Talk) -> None:
        call = name_of(talk)
        for rule in self.rules:
            if rule[0] == call:
                self.rules.remove(rule)
                rule[2].set()
                return rule[1](talk)
        self.forward(talk)
        with self.news:
            self.passed[call] += 1
            self.news.notify_all()

    def forward(self, talk: Talk) -> None:
        with requests.Session() as session:
            session.trust_env = False
            url = f"{self.target}{talk.path}"
            headers = {**talk.headers}
            got = session.request(talk.method, url, headers=headers, data=talk.body, timeout=30)
        answer(got.content, f"{got.status_code} x", "Content-Type: application/json")(talk)


def name_of(talk: Talk) -> str:
    path = urlsplit(talk.path).path
    return f"{talk.method} {'/blob' if '/blob' in path else '/' + path.rpartition('/')[2]}"
