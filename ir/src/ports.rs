//! Protocols and ports.

use std::fmt;

/// A transport protocol whose packets carry ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Transport {
    /// TCP, IP protocol 6.
    Tcp,
    /// UDP, IP protocol 17.
    Udp,
    /// SCTP, IP protocol 132. Never treated as TCP.
    Sctp,
}

impl Transport {
    /// All three, in output order.
    pub const ALL: [Transport; 3] = [Transport::Tcp, Transport::Udp, Transport::Sctp];

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Transport::Tcp => 6,
            Transport::Udp => 17,
            Transport::Sctp => 132,
        }
    }

    /// The name that Kubernetes uses: `TCP`, `UDP`, `SCTP`.
    pub const fn name(self) -> &'static str {
        match self {
            Transport::Tcp => "TCP",
            Transport::Udp => "UDP",
            Transport::Sctp => "SCTP",
        }
    }
}

impl fmt::Display for Transport {
    /// Lower case, as nftables and the text IR write it.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Transport::Tcp => "tcp",
            Transport::Udp => "udp",
            Transport::Sctp => "sctp",
        })
    }
}

/// The protocol of a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Protocol {
    /// A protocol with ports.
    Transport(Transport),
    /// Any other IP protocol, by number (never 6, 17 or 132).
    Other(u8),
}

impl Protocol {
    /// TCP.
    pub const TCP: Protocol = Protocol::Transport(Transport::Tcp);
    /// UDP.
    pub const UDP: Protocol = Protocol::Transport(Transport::Udp);
    /// SCTP.
    pub const SCTP: Protocol = Protocol::Transport(Transport::Sctp);
    /// ICMP for IPv4.
    pub const ICMP: Protocol = Protocol::Other(1);
    /// ICMP for IPv6.
    pub const ICMPV6: Protocol = Protocol::Other(58);

    /// From an IP protocol number.
    pub const fn from_number(number: u8) -> Protocol {
        match number {
            6 => Protocol::TCP,
            17 => Protocol::UDP,
            132 => Protocol::SCTP,
            n => Protocol::Other(n),
        }
    }

    /// Whether a connection begins with a packet that nothing else is: the SYN of TCP, the INIT of SCTP.
    pub const fn has_handshake(self) -> bool {
        matches!(self, Protocol::TCP | Protocol::SCTP)
    }

    /// The IP protocol number.
    pub const fn number(self) -> u8 {
        match self {
            Protocol::Transport(t) => t.number(),
            Protocol::Other(n) => n,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Protocol::Transport(t) => f.write_str(t.name()),
            Protocol::Other(1) => f.write_str("ICMP"),
            Protocol::Other(58) => f.write_str("ICMPv6"),
            Protocol::Other(n) => write!(f, "{n}"),
        }
    }
}

/// One entry of a rule's list of ports.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum PortSpan {
    /// Every protocol and every port, protocols without ports included.
    Any,
    /// The destination ports `lo..=hi` of one protocol. Invariant: `lo <= hi`. `0..=65535` is the whole protocol.
    Ports {
        /// The protocol.
        transport: Transport,
        /// First port.
        lo: u16,
        /// Last port, inclusive.
        hi: u16,
    },
}

impl PortSpan {
    /// All ports of a protocol.
    pub const fn whole(transport: Transport) -> PortSpan {
        PortSpan::Ports { transport, lo: 0, hi: u16::MAX }
    }

    /// One port.
    pub const fn port(transport: Transport, port: u16) -> PortSpan {
        PortSpan::Ports { transport, lo: port, hi: port }
    }

    /// Whether a packet with this protocol and destination port (ignored for protocols without ports) matches.
    pub fn matches(&self, protocol: Protocol, port: u16) -> bool {
        match (self, protocol) {
            (PortSpan::Any, _) => true,
            (PortSpan::Ports { transport, lo, hi }, Protocol::Transport(t)) => {
                *transport == t && (*lo..=*hi).contains(&port)
            }
            (PortSpan::Ports { .. }, Protocol::Other(_)) => false,
        }
    }
}

impl fmt::Display for PortSpan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            PortSpan::Any => f.write_str("any"),
            PortSpan::Ports { transport, lo: 0, hi: u16::MAX } => write!(f, "{transport}"),
            PortSpan::Ports { transport, lo, hi } if lo == hi => write!(f, "{transport}/{lo}"),
            PortSpan::Ports { transport, lo, hi } => write!(f, "{transport}/{lo}-{hi}"),
        }
    }
}
