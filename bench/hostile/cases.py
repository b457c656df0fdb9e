"""All cases of hostile input, and the slice of them that the tests play."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator

from bench.hostile import job_cases, peer_cases, picture_cases
from bench.hostile.case import Case, Place

MAKERS = (
    job_cases.job_data, job_cases.ids, job_cases.addresses, job_cases.redirects, job_cases.hosts,
    picture_cases.no_pictures, picture_cases.pictures, picture_cases.prompts,
    peer_cases.comfyui, peer_cases.comfyui_sockets, peer_cases.api, peer_cases.heartbeats,
    peer_cases.blob, peer_cases.slow,
)  # fmt: skip
# How many of a group are played of what takes long.
QUICK = {
    "ComfyUI": 3, "Blob": 1, "API": 3, "heartbeats": 3, "pictures": 5, "prompts": 5,
    "slow peers": 0, "frame hosts": 2, "no pictures": 15, "job ids": 25, "frame addresses": 50,
    "frame redirects": 12,
}  # fmt: skip


def cases(place: Place) -> Iterator[Case]:
    for make in MAKERS:
        yield from make(place)


def quick_slice(table: Iterable[Case]) -> list[Case]:
    """What needs no waiting, and of what takes long a few."""
    kept: Counter[str] = Counter()

    def keep(case: Case) -> bool:
        if "10 MB" in case.name:
            return False
        kept[case.group] += 1
        return kept[case.group] <= QUICK.get(case.group, 1000)

    return [case for case in table if keep(case)]
