"""The offload ladder of one underlay: which rung it is on, and why.

    rung 0  plain   one datagram a frame, one frame a datagram
    rung 1  batch   tap_gso, udp_gso, udp_gro: super-frames at the device, many datagrams a system call
    rung 2  super   tunnel_gso: one super-packet through the inject TAP

Each feature has the operator's switch.  `auto` follows a probe made by us, is lowered by what a socket
says at run time and tried again after RETRY_SECONDS: the kernel features underneath regress and recover.
What a frame contains never lowers anything, for a stranger may have chosen it.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum, StrEnum

# Ours
RETRY_SECONDS = 60.0

log = logging.getLogger("weft.ladder")


class Feature(StrEnum):
    """What a rung is made of; the value is its key under `[offload]`.

    Text rather than a plain enum, whose hash is a function in Python: `is_on` is asked for every frame.
    """

    TAP_GSO = "tap_gso"
    UDP_GSO = "udp_gso"
    UDP_GRO = "udp_gro"
    TUNNEL_GSO = "tunnel_gso"


class Switch(Enum):
    """What the operator says of a feature: probe for it, insist on it, or leave it alone."""

    AUTO = "auto"
    ON = "on"
    OFF = "off"


Switches = Mapping[Feature, Switch]


@dataclass(slots=True)
class _Standing:
    """How one feature stands."""

    is_on: bool
    reason: str
    retry_at: float | None = None
    remark: str = ""


class Ladder:
    """The features of one underlay, each on or off with its reason."""

    def __init__(self, switches: Switches | None = None) -> None:
        """Everything off until it was probed; `switches` left out means auto."""
        self._switches = dict(switches or {})
        self._standings = {
            feature: _Standing(is_on=False, reason=f"{feature.value}: not probed") for feature in Feature
        }

    def is_on(self, feature: Feature) -> bool:
        """Whether it is in use."""
        return self._standings[feature].is_on

    def reason(self, feature: Feature) -> str:
        """Why it is on or off."""
        return self._standings[feature].reason

    def wants(self, feature: Feature) -> bool:
        """Whether the operator would have it at all."""
        return self._switches.get(feature, Switch.AUTO) is not Switch.OFF

    def insists(self, feature: Feature) -> bool:
        """Whether the operator wants it whatever happens: he wants to see it fail."""
        return self._switches.get(feature, Switch.AUTO) is Switch.ON

    def probed(self, feature: Feature, obstacle: str | None) -> bool:
        """Takes a probe's result, None where nothing is in the way; whether the feature is now on."""
        if not self.wants(feature):
            self._standings[feature] = _Standing(is_on=False, reason=f'{feature.value} = "off"')
        elif obstacle is None:
            self._standings[feature] = _Standing(is_on=True, reason=f"{feature.value} works")
        else:
            self._standings[feature] = _Standing(is_on=False, reason=f"{feature.value}: {obstacle}")
        return self.is_on(feature)

    def lower(self, feature: Feature, why: str, *, now: float) -> None:
        """A socket or a probe said no at run time: off, and tried again after a while.

        One that the operator insists on stays in use.
        """
        if self.insists(feature) or not self.is_on(feature):
            return
        reason = f"{feature.value}: {why}"
        log.warning("%s; off, to be tried again in %g s", reason, RETRY_SECONDS)
        self._standings[feature] = _Standing(is_on=False, reason=reason, retry_at=now + RETRY_SECONDS)

    def remark(self, feature: Feature, text: str) -> None:
        """Something the operator must know of the feature while it is on; until the next probe."""
        self._standings[feature].remark = text

    def due(self, *, now: float) -> tuple[Feature, ...]:
        """The features to probe again now; each is named once for every time it was lowered."""
        features = []
        for feature, standing in self._standings.items():
            if standing.retry_at is not None and now >= standing.retry_at:
                standing.retry_at = None
                features.append(feature)
        return tuple(features)

    def egress(self) -> str:
        """The rung towards the underlay: `plain`, `batch` or `super`."""
        if self.is_on(Feature.TUNNEL_GSO) and self.is_on(Feature.TAP_GSO):  # without it there is none to send
            return "super"
        return "batch" if self.is_on(Feature.UDP_GSO) else "plain"

    def ingress(self) -> str:
        """The rung from the underlay: `plain` or `batch`."""
        return "batch" if self.is_on(Feature.UDP_GRO) else "plain"

    def explain(self) -> str:
        """Why these rungs: what keeps each feature off, or that nothing does; and what is to be known."""
        standings = self._standings.values()
        off = [standing.reason for standing in standings if not standing.is_on]
        remarks = [standing.remark for standing in standings if standing.is_on and standing.remark]
        return "; ".join([*(off or ["every probe passed"]), *remarks])
