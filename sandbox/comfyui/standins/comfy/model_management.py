"""What lies on the card: the text encoder, the model, and what the allocator has not given back."""

from __future__ import annotations

import time
from dataclasses import dataclass

ENCODER_VRAM = 12_200_000_000  # bytes


@dataclass
class Card:
    encoder: bool = False
    model: bool = False
    # An encoder's memory is the allocator's until its cache is emptied; a model's is mapped and
    # back at once.
    cached: int = 0
    rest_s: float = 0.0  # what an encoder takes to RAM

    def take_encoder(self) -> None:
        self.encoder, self.cached = True, 0

    def take_model(self) -> None:
        """It needs all there is: an encoder goes to RAM."""
        self.encoder, self.model, self.cached = False, True, 0

    def held(self) -> int:
        """Bytes, but for the model's."""
        return ENCODER_VRAM if self.encoder else self.cached


card = Card()


def unload_all_models() -> None:
    if card.encoder:
        time.sleep(card.rest_s)
        card.cached = ENCODER_VRAM
    card.encoder = card.model = False


def soft_empty_cache(force: bool = False) -> None:
    card.cached = 0
