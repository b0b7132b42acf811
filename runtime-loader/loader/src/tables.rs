//! Whether nftables has a table or a chain of some name, asked of the kernel itself.
//!
//! `nft list tables` reads every rule of the namespace before it answers (nft 1.0.6), which takes a second beside the
//! 20,000 rules of a kube-proxy; and a rule of another hand that it cannot read is none of our business.

use crate::netlink::{self, ERROR, Outgoing, REQUEST, Socket};
use netpolc_bundle::nft::Family;
use std::io;

/// `NFNL_SUBSYS_NFTABLES << 8`, with `NFT_MSG_NEWTABLE` and `NFT_MSG_GETTABLE`
/// (`include/uapi/linux/netfilter/nf_tables.h`).
const NEW_TABLE: u16 = 0xa00;
const GET_TABLE: u16 = 0xa01;

/// `NFT_MSG_NEWCHAIN` and `NFT_MSG_GETCHAIN`.
const NEW_CHAIN: u16 = 0xa03;
const GET_CHAIN: u16 = 0xa04;

/// `NFTA_TABLE_NAME`: the name with a zero byte behind it.
const NAME: u16 = 1;
/// `NFTA_CHAIN_TABLE` and `NFTA_CHAIN_NAME`, likewise.
const CHAIN_TABLE: u16 = 1;
const CHAIN_NAME: u16 = 3;
/// `NFTA_CHAIN_USE`: a number of four bytes in network byte order.
const CHAIN_USE: u16 = 6;

/// `NFPROTO_IPV4` and `NFPROTO_IPV6` (`include/uapi/linux/netfilter.h`).
const fn number(family: Family) -> u8 {
    match family {
        Family::Ip => 2,
        Family::Ip6 => 10,
    }
}

/// Whether there is a table of this family and name in this network namespace.
///
/// # Errors
/// Without `CAP_NET_ADMIN`, or if the kernel has no nftables or does not answer.
pub fn exists(family: Family, name: &str) -> io::Result<bool> {
    let name = zero_ended(name);
    Ok(ask(family, (GET_TABLE, NEW_TABLE), &[(NAME, &name)], |_| ())?.is_some())
}

/// How many rules a chain has, and jumps lead to it; 0 if there is no such chain.
///
/// # Errors
/// As [`exists`].
pub fn uses(family: Family, table: &str, chain: &str) -> io::Result<u32> {
    let (table, chain) = (zero_ended(table), zero_ended(chain));
    let attributes: [(u16, &[u8]); 2] = [(CHAIN_TABLE, &table), (CHAIN_NAME, &chain)];
    let uses = |body: &[u8]| {
        let found = netlink::attributes(body).find(|(kind, _)| *kind == CHAIN_USE);
        found.and_then(|(_, value)| value.first_chunk()).map_or(0, |bytes| u32::from_be_bytes(*bytes))
    };
    Ok(ask(family, (GET_CHAIN, NEW_CHAIN), &attributes, uses)?.unwrap_or(0))
}

fn zero_ended(name: &str) -> Vec<u8> {
    [name.as_bytes(), &[0]].concat()
}

/// Asks for one object, and reads it; `None` if it is not there.
fn ask<T>(
    family: Family,
    (get, new): (u16, u16),
    attributes: &[(u16, &[u8])],
    read: impl Fn(&[u8]) -> T,
) -> io::Result<Option<T>> {
    let mut socket = Socket::open()?;
    let mut request = Outgoing::default();
    // `struct nfgenmsg`: family, version, two bytes that do not matter here.
    let head = [number(family), 0, 0, 0];
    request.push(get, REQUEST, 1, &head, attributes);
    socket.send(&request)?;
    loop {
        for message in netlink::messages(socket.receive()?) {
            match message.kind {
                kind if kind == new => {
                    return Ok(Some(read(message.payload.get(head.len()..).unwrap_or_default())));
                }
                ERROR => {
                    let error = message.error().unwrap_or_else(|| io::Error::other("an empty answer"));
                    return if error.kind() == io::ErrorKind::NotFound { Ok(None) } else { Err(error) };
                }
                _ => {}
            }
        }
    }
}
