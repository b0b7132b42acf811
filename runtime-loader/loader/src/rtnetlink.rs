//! Routes and links, through rtnetlink (rtnetlink(7), `include/uapi/linux/rtnetlink.h`).

use crate::netlink::{self, ACK, DONE, DUMP, DUMP_INTERRUPTED, ERROR, Message, Outgoing, REQUEST, Socket};
use crate::node::cidr::Cidr;
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// How often the table is read again if it changed while it was read.
const ATTEMPTS: u32 = 5;

/// Most routes that are kept of a table. Ours: only routes of one origin, to certain networks, or default routes are.
const ROUTES: usize = 65_536;

/// `RTM_NEWLINK`, `RTM_GETLINK`, `RTM_NEWROUTE`, `RTM_DELROUTE`, `RTM_GETROUTE`.
const NEW_LINK: u16 = 16;
const GET_LINK: u16 = 18;
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const GET_ROUTE: u16 = 26;

/// `NLM_F_REPLACE`, `NLM_F_EXCL`, `NLM_F_CREATE`.
const REPLACE: u16 = 0x100;
const EXCLUSIVE: u16 = 0x200;
const CREATE: u16 = 0x400;

/// `RTA_DST`, `RTA_OIF`, `RTA_GATEWAY`, `RTA_PRIORITY`.
const DESTINATION: u16 = 1;
const INTERFACE: u16 = 4;
const GATEWAY: u16 = 5;
const PRIORITY: u16 = 6;

/// `IFLA_MTU`.
const MTU: u16 = 4;

/// `RT_TABLE_MAIN`, `RTN_UNICAST`, `RT_SCOPE_UNIVERSE`, `RTM_F_CLONED`.
const MAIN: u8 = 254;
const UNICAST: u8 = 1;
const UNIVERSE: u8 = 0;
const CLONED: u32 = 0x200;

/// `AF_INET`, `AF_INET6`.
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// The lengths of `struct rtmsg` and `struct ifinfomsg`.
const ROUTE_HEAD: usize = 12;
const LINK_HEAD: usize = 16;

/// A route of the main table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Route {
    /// Where it leads.
    pub destination: Cidr,
    /// The next hop, if there is one and it is of the same family.
    pub gateway: Option<IpAddr>,
    /// The index of the interface.
    pub interface: Option<u32>,
    /// Lower is better.
    pub priority: u32,
    /// `rtm_protocol`: who made it.
    pub protocol: u8,
}

/// A socket for routes and links in the network namespace of this thread.
#[derive(Debug)]
pub struct Routing {
    socket: Socket,
    sequence: u32,
}

impl Routing {
    /// Opens a socket.
    ///
    /// # Errors
    /// If the kernel has none to give.
    pub fn open() -> io::Result<Routing> {
        Ok(Routing { socket: Socket::open_route()?, sequence: 0 })
    }

    /// The routes of the main table of both families that are wanted.
    ///
    /// # Errors
    /// If they cannot be read, or are too many.
    pub fn routes(&mut self, wanted: &dyn Fn(&Route) -> bool) -> io::Result<Vec<Route>> {
        for _ in 0..ATTEMPTS {
            if let Some(routes) = self.walk(wanted)? {
                return Ok(routes);
            }
        }
        Err(io::Error::other("the routing table changed again and again while it was read"))
    }

    fn walk(&mut self, wanted: &dyn Fn(&Route) -> bool) -> io::Result<Option<Vec<Route>>> {
        let mut found = Vec::new();
        let mut whole = true;
        for family in [AF_INET, AF_INET6] {
            let mut head = [0; ROUTE_HEAD];
            head[0] = family;
            self.ask(GET_ROUTE, DUMP, &head, &[], &mut |message| {
                whole &= message.flags & DUMP_INTERRUPTED == 0;
                if message.kind == NEW_ROUTE {
                    found.extend(read(message.payload).filter(wanted));
                }
                if found.len() > ROUTES {
                    return Err(io::Error::other("too many routes"));
                }
                Ok(())
            })?;
        }
        Ok(whole.then_some(found))
    }

    /// Adds a route; there must be none to the same destination with the same priority.
    ///
    /// # Errors
    /// `EEXIST` if there is one, `ENETUNREACH` if the next hop is no neighbour.
    pub fn add(&mut self, route: &Route) -> io::Result<()> {
        self.change(NEW_ROUTE, CREATE | EXCLUSIVE, route)
    }

    /// Puts a route in the place of one to the same destination.
    ///
    /// # Errors
    /// As [`Routing::add`].
    pub fn replace(&mut self, route: &Route) -> io::Result<()> {
        self.change(NEW_ROUTE, CREATE | REPLACE, route)
    }

    /// Deletes a route.
    ///
    /// # Errors
    /// `ESRCH` if there is none.
    pub fn delete(&mut self, route: &Route) -> io::Result<()> {
        self.change(DELETE_ROUTE, 0, route)
    }

    fn change(&mut self, kind: u16, flags: u16, route: &Route) -> io::Result<()> {
        let family = if route.destination.is_ipv4() { AF_INET } else { AF_INET6 };
        let length = route.destination.length();
        let head = [family, length, 0, 0, MAIN, route.protocol, UNIVERSE, UNICAST, 0, 0, 0, 0];
        let destination = octets(route.destination.addr());
        let gateway = route.gateway.map(octets);
        let interface = route.interface.map(u32::to_ne_bytes);
        let priority = route.priority.to_ne_bytes();
        let mut attributes: Vec<(u16, &[u8])> = vec![(DESTINATION, &destination)];
        attributes.extend(gateway.as_ref().map(|addr| (GATEWAY, addr.as_slice())));
        attributes.extend(interface.as_ref().map(|index| (INTERFACE, index.as_slice())));
        if route.priority != 0 {
            attributes.push((PRIORITY, &priority));
        }
        self.ask(kind, flags | ACK, &head, &attributes, &mut |_| Ok(()))
    }

    /// The MTU of an interface.
    ///
    /// # Errors
    /// If there is no such interface.
    pub fn mtu(&mut self, interface: u32) -> io::Result<Option<u32>> {
        let mut head = [0; LINK_HEAD];
        for (place, byte) in head.iter_mut().skip(4).zip(interface.to_ne_bytes()) {
            *place = byte;
        }
        let mut mtu = None;
        // The acknowledgement comes after the answer.
        self.ask(GET_LINK, ACK, &head, &[], &mut |message| {
            if message.kind == NEW_LINK {
                let body = message.payload.get(LINK_HEAD..).unwrap_or_default();
                mtu = netlink::attributes(body).find(|(kind, _)| *kind == MTU).and_then(|(_, v)| number(v));
            }
            Ok(())
        })?;
        Ok(mtu)
    }

    /// Sends a request and reads the answers to their end.
    fn ask(
        &mut self,
        kind: u16,
        flags: u16,
        head: &[u8],
        attributes: &[(u16, &[u8])],
        each: &mut dyn FnMut(&Message<'_>) -> io::Result<()>,
    ) -> io::Result<()> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut request = Outgoing::default();
        request.push(kind, REQUEST | flags, self.sequence, head, attributes);
        self.socket.send(&request)?;
        loop {
            for message in netlink::messages(self.socket.receive()?) {
                if message.sequence != self.sequence {
                    continue;
                }
                match message.kind {
                    ERROR | DONE => return message.error().map_or(Ok(()), Err),
                    _ => each(&message)?,
                }
            }
        }
    }
}

fn octets(addr: IpAddr) -> Vec<u8> {
    match addr {
        IpAddr::V4(addr) => addr.octets().to_vec(),
        IpAddr::V6(addr) => addr.octets().to_vec(),
    }
}

fn number(value: &[u8]) -> Option<u32> {
    value.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes))
}

fn address(family: u8, value: &[u8]) -> Option<IpAddr> {
    match family {
        AF_INET => Some(IpAddr::V4(Ipv4Addr::from(*value.first_chunk::<4>()?))),
        AF_INET6 => Some(IpAddr::V6(Ipv6Addr::from(*value.first_chunk::<16>()?))),
        _ => None,
    }
}

/// A route as the kernel describes it; `None` for what is not a unicast route of the main table.
fn read(payload: &[u8]) -> Option<Route> {
    let (head, body) = payload.split_at_checked(ROUTE_HEAD)?;
    let [family, length, _, _, table, protocol, _, kind, flags @ ..] = head else { return None };
    if (*table, *kind) != (MAIN, UNICAST) || number(flags)? & CLONED != 0 {
        return None;
    }
    let any = if *family == AF_INET {
        IpAddr::V4(Ipv4Addr::UNSPECIFIED)
    } else {
        IpAddr::V6(Ipv6Addr::UNSPECIFIED)
    };
    let (mut destination, mut gateway, mut interface, mut priority) = (any, None, None, 0);
    for (kind, value) in netlink::attributes(body) {
        match kind {
            DESTINATION => destination = address(*family, value)?,
            GATEWAY => gateway = address(*family, value),
            INTERFACE => interface = number(value),
            PRIORITY => priority = number(value).unwrap_or(0),
            _ => {}
        }
    }
    let destination = Cidr::new(destination, *length)?;
    Some(Route { destination, gateway, interface, priority, protocol: *protocol })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_read_and_broken_ones_passed_over() {
        let mut out = vec![AF_INET, 24, 0, 0, MAIN, 110, 0, UNICAST, 0, 0, 0, 0];
        out.extend([8, 0, 1, 0, 10, 244, 2, 0]);
        out.extend([8, 0, 5, 0, 172, 18, 0, 3]);
        let route = read(&out).unwrap();
        assert_eq!(route.destination.to_string(), "10.244.2.0/24");
        assert_eq!(route.gateway, Some("172.18.0.3".parse().unwrap()));
        assert_eq!((route.protocol, route.priority, route.interface), (110, 0, None));
        for length in 0..ROUTE_HEAD {
            assert_eq!(read(&out[..length]), None);
        }
        let mut long = out.clone();
        long[1] = 33;
        assert_eq!(read(&long), None);
        let mut local = out;
        local[4] = 255;
        assert_eq!(read(&local), None);
    }
}
