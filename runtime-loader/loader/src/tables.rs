//! Whether nftables has a table of some name, asked of the kernel itself.
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

/// `NFTA_TABLE_NAME`: the name with a zero byte behind it.
const NAME: u16 = 1;

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
    let mut socket = Socket::open()?;
    let mut request = Outgoing::default();
    // `struct nfgenmsg`: family, version, two bytes that do not matter here.
    let head = [number(family), 0, 0, 0];
    let name = [name.as_bytes(), &[0]].concat();
    request.push(GET_TABLE, REQUEST, 1, &head, &[(NAME, &name)]);
    socket.send(&request)?;
    loop {
        for message in netlink::messages(socket.receive()?) {
            match message.kind {
                NEW_TABLE => return Ok(true),
                ERROR => {
                    let error = message.error().unwrap_or_else(|| io::Error::other("an empty answer"));
                    return if error.kind() == io::ErrorKind::NotFound { Ok(false) } else { Err(error) };
                }
                _ => {}
            }
        }
    }
}
