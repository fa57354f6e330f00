"""The laboratory's user-space network: NATs, routers, firewalls and links in one process.

Run it as::

    python -m warpgate_natlab.engine --config FILE --control SOCK [--ready-fd N] [--normal-priority]

It creates the TUN devices, configures them, binds the control socket, writes one JSON line to
descriptor N (``{"ready": true, "pid": 123}`` or ``{"ready": false, "error": "..."}``), closes it,
and forwards until the op ``stop``, SIGTERM, SIGINT or the death of its parent (PR_SET_PDEATHSIG).
Its TUN devices vanish with it. It needs root and ``ip``; the network namespaces must exist.

The configuration
=================

One JSON object. Names of devices and nodes share one name space (no ``:`` in them). Every address
is text; times end in ``_ms`` or ``_s``. An unknown key is an error that names it::

    {
      "seed": 7,                      # int or text; each element has generators of its own from it
      "devices": {
        "a": {"netns": "wgl-x-a",     # name in /run/netns, or a path such as /proc/12/ns/net
              "name": "eth0",         # interface name inside (<= 15 characters)
              "addresses": ["192.168.1.2/24", "2001:db8:a::2/64"],
              "mtu": 1500,
              "txqueuelen": 5000,
              "routes": ["default"]}  # arguments of `ip route add`, without "dev"; "default" makes a
      },                              # default route for each family that has an address; "default6",
                                      # "10.0.0.0/8 metric 5", "default src 192.168.1.2" ...
      "nodes": {
        "nat_a": {"type": "nat", "external": ["203.0.113.10"], "address": "192.168.1.1",
                  "mapping": "address-and-port-dependent", "allocation": "random"},
        "inet": {"type": "router", "addresses": ["203.0.113.1", "198.51.100.1"],
                 "routes": {"a": ["203.0.113.10/32"], "srv": ["198.51.100.0/24"]}}
      },
      "links": {
        "lan_a": {"a": "a", "b": "nat_a:in"},                   # a device has one port, without a name
        "access_a": {"a": "nat_a:out", "b": "inet:a",
                     "both": {"delay_ms": 20}, "ab": {"loss": 0.01}}    # ab = from a to b
      }
    }

A device is a TUN: give it ``addresses`` with the subnet's prefix; everything goes to the engine
(no ARP, no neighbour discovery). The kernel's own link-local chatter (source ``fe80::/10`` or
``::``, destination ``ff02::/16``, IGMP) is dropped at the device and counted.

Nodes
-----

``router``: longest prefix first. Time exceeded, network unreachable (no route) and answers to
echo requests come from its addresses.
  ``addresses``: [own addresses] (none of a family: 192.0.0.8 as source in IPv4, silence in IPv6)
  ``routes``: {port: [prefixes]};  ``ttl``: true (decrement)

``lan``: a router that doesn't touch the TTL and floods multicast and 255.255.255.255 to all other
ports: several devices on one subnet. ``routes`` lists each device's /32 (/128) and, on the port
towards the NAT, ``0.0.0.0/0``.

``nat``: NAPT44 by RFC 4787, 5382, 5508, 7857. Ports: ``out``, and the inside ports.
  ``external``: ["203.0.113.10", ...]      ``address``: inside address (source of its ICMP; pingable)
  ``inside``: {port: [prefixes]}, default {"in": ["0.0.0.0/0"]}; nested NAT = its "out" on another's "in"
  ``v6``: "drop" (default) | "pass" (IPv6 forwarded unchanged between "in" and "out")
``firewall``: the same machine without translation, IPv4 and IPv6. Ports ``in``, ``out``.
  ``addresses``: for its ICMP errors;  ``families``: [4, 6], others pass unchanged
``nat64``: RFC 6146 for TCP, UDP, ICMP echo and errors. Ports ``in`` (IPv6), ``out`` (IPv4).
  ``external`` (IPv4);  ``prefix``: "64:ff9b::/96" (a /96);  ``address``: its IPv6 address

What nat, firewall and nat64 share (defaults first):
  ``mapping``: "endpoint-independent" | "address-dependent" | "address-and-port-dependent"
  ``filtering``: the same three, default "address-and-port-dependent"
        each a text, or {"udp": ..., "tcp": ...}. ICMP echo: endpoint-independent mapping,
        address-dependent filtering, always.
  ``allocation`` (not firewall): "preserving" | "sequential" | "block" | "random", or
        {"mode": ..., "step": 1, "size": 512, "blocks": 1, "within": "random" | "sequential",
         "range": [1024, 65535]}
        preserving: the inside port, taken -> random in range. sequential: random start, +step, per
        protocol and external address, taken ones skipped. block: per inside host up to ``blocks``
        aligned blocks of ``size``; exhausted -> drop. random: uniform among the free ones.
  ``pooling``: "paired" | "arbitrary"   (with several external addresses)
  ``hairpin``: true | false             (the source is the external address, RFC 4787 REQ-9)
  ``stray_syn``: "drop" | "rst" | "icmp"  inbound SYN without mapping or refused by the filter; "rst"
        answers every stray segment but RST; "icmp" is RFC 5382 REQ-4: after ``stray_icmp_s`` (6),
        unless an own SYN to that peer went out meanwhile
  ``stray_udp``: "drop" | "icmp"        (port unreachable, at once)
  ``udp_ports``, ``tcp_ports``: null (all) | list of remote ports allowed outward; ``"udp_ports": []``
        blocks UDP, ``"tcp_ports": [443]`` is https only
  ``icmp_echo``: true | false;   ``on_blocked``: "drop" | "reject" (RST or ICMP prohibited)
  ``tcp_midstream``: "drop" | "rst" | "accept"   outbound TCP that is no SYN and has no mapping
  ``timers``: {"udp_s": 300, "udp_first_packet_s": null, "tcp_transitory_s": 240,
        "tcp_established_s": 7440, "icmp_s": 60}; udp_first_packet_s holds until a second packet
        (either direction) has passed; null = udp_s
  ``inbound_refresh``: true | false     inbound packets prolong a UDP mapping (outbound always do)
  ``fragments``: "reassemble" | "drop"  (what is sent on is cut again for the link's MTU)
  ``max_per_host``: 0 (no limit) | live mappings one inside host may have
  ``answer_ping``: true | false         echo requests to the external address
  ``forwards``: [{"proto": "udp", "external_port": 5000, "to": "192.168.1.2", "port": 5000}]; never
        expire, no filter; outbound traffic of that inside endpoint uses them. On a firewall: a
        pinhole (``external_port`` is ignored).

Links (per direction; all switchable while running)
---------------------------------------------------

``delay_ms`` 0, ``jitter_ms`` 0 (uniform, +-; order kept unless ``jitter_reorder`` true),
``loss`` 0 (independent), ``burst_p``/``burst_r`` 0 (Gilbert-Elliott: good to bad with p, bad to good
with r, all lost while bad; mean loss p/(p+r), mean burst 1/r packets), ``reorder`` 0 (probability of
being held back ``reorder_ms`` 5 more), ``duplicate`` 0, ``rate_bps`` 0 (no limit), ``queue_bytes``
150000 (what may wait for the rate; then tail drop), ``mtu`` 0 (no limit), ``mtu_icmp`` true: too long
-> fragmentation needed / packet too big (a cut into fragments without DF); false: a black hole,
``up`` true.

The control socket
==================

A Unix stream socket; one JSON object a line, answers in order, any number of clients::

    -> {"id": 1, "op": "set_link", "link": "access_a", "dir": "both", "params": {"loss": 0.1}}
    <- {"id": 1, "ok": true, "result": {...}}      or   {"id": 1, "ok": false, "error": "text"}

===============  =================================================================================
op               arguments -> result
===============  =================================================================================
``ping``         -> {"pid", "now", "uptime_s", "late_max_ms"}: the last says how late an event was
                 carried out, at worst (a run on an overloaded machine is known by it)
``describe``     -> {"seed", "devices", "nodes", "links"}: with all defaults filled in
``stats``        ``name`` (device, node or link; absent: all) -> see below
``reset_stats``  -> {}: all counters to 0 (live mappings stay)
``set_link``     ``link``, ``dir`` "ab" | "ba" | "both" (default), ``params`` -> {"ab": .., "ba": ..}
``cut``          ``link``, ``dir`` -> {}: drops; what is under way still arrives
``restore``      ``link``, ``dir`` -> {}
``set_node``     ``node``, ``params``: keys of "what they share" -> {}: live mappings stay
``reboot``       ``node``, ``down_s`` 0 -> {"forgotten": n}: mappings gone, forwards stay; while down
                 everything is dropped
``readdress``    ``node`` (nat, nat64), ``external`` -> {"forgotten": n}: mappings gone; the host routes
                 of a router at its "out" follow
``route_add``    ``node`` (router, lan), ``prefix``, ``port`` -> {}
``route_del``    ``node``, ``prefix`` -> {}
``mappings``     ``node``, ``host`` (optional) -> [{"proto", "inside": [ip, port], "outside": [ip, port],
                 "remotes": [[ip, port], ..], "expires_in_s": float | null}]
``forward_add``  ``node``, ``proto``, ``external_port``, ``to``, ``port`` -> {}
``forward_del``  ``node``, ``proto``, ``external_port`` (firewall: ``to``, ``port``) -> {}
``add``          ``devices``, ``nodes``, ``links`` as in the configuration -> {}
``remove``       ``device`` or ``link`` -> {}: a device goes with its link
``pcap_start``   ``link``, ``file`` -> {}: what enters the link, both directions (LINKTYPE_RAW)
``pcap_stop``    ``link`` -> {"packets": n}
``stop``         -> {} and the engine ends
===============  =================================================================================

Statistics: ``{"devices": {name: D}, "nodes": {name: N}, "links": {name: {"ab": L, "ba": L}}}`` (with
``name``: that one value).

- D: ``rx_packets``/``rx_bytes`` (from the host), ``tx_packets``/``tx_bytes`` (to it), ``drops`` {cause: n},
  ``tx_src`` {source ip: packets}: what a victim received, and from whom.
- N: ``packets``, ``drops`` {cause: n}, ``icmp_sent``, ``dst`` {ip: [packets, bytes]} (packets forwarded, by
  destination; nat: outward only, the translated form). nat, firewall, nat64 add ``mappings`` (live),
  ``hosts`` {inside ip: {"live", "peak", "mappings" (ever made), "flows" (distinct proto, inside port,
  remote ip, remote port ever sent to), "remotes" (distinct remote addresses)}}.
- L: ``packets``/``bytes`` (entered), ``delivered``, ``drops`` {cause: n}, ``duplicated``, ``held_back``,
  ``queued`` (under way now).

In tests without privileges, ``graph.Graph`` is all of it but the devices' I/O: ``inject(device,
packet, now)``, ``advance(now)`` -> [(device, packet)], ``next_time()``.
"""

from __future__ import annotations

__all__: list[str] = []
