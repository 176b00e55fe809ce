"""The ladder: what is probed, what the operator says, what a socket says later, and the reasons shown."""

from __future__ import annotations

import pytest

from tunnel.ladder import RETRY_SECONDS, Feature, Ladder, Switch

GSO, GRO = Feature.UDP_GSO, Feature.UDP_GRO


def ladder(switch: Switch = Switch.AUTO) -> Ladder:
    made = Ladder({GSO: switch})
    made.probed(GSO, None)
    return made


def test_nothing_is_on_before_it_was_probed() -> None:
    assert not any(Ladder().is_on(feature) for feature in Feature)
    assert (Ladder().egress(), Ladder().ingress()) == ("plain", "plain")


def test_what_a_probe_finds_is_on_and_what_it_misses_is_off_with_the_reason() -> None:
    made = Ladder()
    assert made.probed(GSO, None)
    assert not made.probed(GRO, "this kernel: Protocol not available")
    assert (made.egress(), made.ingress()) == ("batch", "plain")
    assert "udp_gro: this kernel: Protocol not available" in made.explain()
    assert "udp_gso" not in made.explain()


def test_off_stays_off_whatever_a_probe_finds() -> None:
    made = ladder(Switch.OFF)
    assert not made.is_on(GSO)
    assert made.reason(GSO) == 'udp_gso = "off"'
    assert not made.wants(GSO)


def test_what_fails_at_run_time_is_lowered_and_due_again_once() -> None:
    made = ladder()
    made.lower(GSO, "Input/output error on the way", now=10.0)
    assert not made.is_on(GSO)
    assert "Input/output error" in made.reason(GSO)
    assert made.due(now=10.0 + RETRY_SECONDS - 1) == ()
    assert made.due(now=10.0 + RETRY_SECONDS) == (GSO,)
    assert made.due(now=10.0 + RETRY_SECONDS) == ()
    assert made.probed(GSO, None)


def test_what_the_operator_insists_on_is_not_lowered() -> None:
    made = ladder(Switch.ON)
    made.lower(GSO, "Input/output error", now=0.0)
    assert made.is_on(GSO)


def test_lowering_what_is_off_asks_for_no_probe() -> None:
    made = Ladder()
    made.lower(GSO, "whatever", now=0.0)
    assert made.due(now=1e9) == ()


@pytest.mark.parametrize("feature", list(Feature))
def test_each_feature_is_called_as_its_switch_is(feature: Feature) -> None:
    assert feature.value == feature.name.lower()


def test_with_everything_on_it_is_on_the_highest_rung_and_says_so() -> None:
    made = Ladder()
    for feature in Feature:
        made.probed(feature, None)
    assert (made.egress(), made.ingress(), made.explain()) == ("super", "batch", "every probe passed")


def test_a_remark_is_told_while_the_feature_is_on_and_beside_what_is_off() -> None:
    made = ladder()
    made.remark(GSO, "past the firewall")
    assert made.explain().endswith("; past the firewall")
    assert f"{GRO.value}: not probed" in made.explain()
    made.lower(GSO, "Input/output error", now=0.0)
    assert "past the firewall" not in made.explain()


def test_a_remark_lasts_until_the_next_probe() -> None:
    made = ladder()
    made.remark(GSO, "past the firewall")
    made.remark(GSO, "and past the routes")
    assert made.explain().count("past") == 1
    made.probed(GSO, None)
    assert "past" not in made.explain()


def test_what_is_off_has_no_remark() -> None:
    made = ladder(Switch.OFF)
    made.remark(GSO, "past the firewall")
    assert "past the firewall" not in made.explain()


@pytest.mark.parametrize("switch", list(Switch))
def test_only_an_operator_who_says_on_insists(switch: Switch) -> None:
    assert ladder(switch).insists(GSO) == (switch is Switch.ON)
    assert not ladder(switch).insists(GRO)
    assert ladder(switch).wants(GSO) == (switch is not Switch.OFF)
