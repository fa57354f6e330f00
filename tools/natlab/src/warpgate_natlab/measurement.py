"""What a probe found."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass
class Measurement:
    """What was found; the fields of :class:`~warpgate_natlab.profiles.Expectation`, and more.

    Attributes:
        tcp_mapping: the mapping behaviour for TCP.
        tcp_filtering: who may connect to the outside endpoint of a TCP connection.
        syn_mapped: what becomes of a stranger's SYN to such an endpoint.
        tcp_timer: whether an established connection's mapping ends when its time is over.
        delay_out_ms, delay_in_ms: one way, host to server and back; None: nothing came through.
        loss: the fraction lost while the link lost ``LOSS``; None: UDP does not get through.
        loss_free: the fraction lost without impairment.

    """

    mapping: str
    filtering: str
    allocation: str
    hairpin: str
    tcp: str
    tcp_mapping: str
    syn: str
    timer: str
    tcp_filtering: str
    syn_mapped: str
    tcp_timer: str
    delay_out_ms: float | None
    delay_in_ms: float | None
    loss: float | None
    loss_free: float | None
