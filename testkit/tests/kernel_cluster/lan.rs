//! The network that the nodes stand on, with an outside at `.100` that is their way to everything.

use crate::netns::Netns;
use crate::server::Server;
use std::net::IpAddr;

pub(crate) struct Lan {
    switch: Netns,
    pub(crate) outside: Netns,
    _server: Server,
}

/// The addresses of what is plugged in with this number.
pub(crate) fn addrs(number: u8) -> [IpAddr; 2] {
    [format!("172.18.0.{number}"), format!("fd00:18::{number}")].map(|text| text.parse().unwrap())
}

/// The ranges of a node's pods: few addresses, so that they are soon used again.
pub(crate) fn ranges(number: u8) -> [String; 2] {
    [format!("10.244.{number}.0/28"), format!("fd00:244:0:{number}::/64")]
}

pub(crate) const OUTSIDE: u8 = 100;

impl Lan {
    pub(crate) fn new(nodes: u8) -> Lan {
        let (switch, outside) = (Netns::new(), Netns::new());
        switch.sh("ip link add br0 type bridge; ip link set br0 up; ip link set lo up");
        let server = Server::start(&outside, "outside");
        let lan = Lan { switch, outside, _server: server };
        lan.plug(&lan.outside, OUTSIDE);
        for node in 1..=nodes {
            for (range, addr) in ranges(node).iter().zip(addrs(node)) {
                lan.outside.sh(&format!("ip route add {range} via {addr}"));
            }
        }
        lan
    }

    pub(crate) fn plug(&self, netns: &Netns, number: u8) {
        let (port, name) = (format!("p{number}"), &netns.0);
        self.switch.sh(&format!("ip link add {port} type veth peer name eth0 netns {name}"));
        self.switch.sh(&format!("ip link set {port} master br0 up"));
        netns.sh("ip link set lo up; ip link set eth0 up");
        let [v4, v6] = addrs(number);
        netns.sh(&format!("ip addr add {v4}/24 dev eth0; ip addr add {v6}/64 dev eth0 nodad"));
    }
}
