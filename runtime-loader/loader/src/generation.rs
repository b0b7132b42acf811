//! The number of the last transaction of nftables in this network namespace.
//!
//! The kernel counts every transaction that changes rules, whoever commits it (`nf_tables_commit` in
//! `net/netfilter/nf_tables_api.c`). As long as the number is the same, no one has touched any table, and there is no
//! need to list ours again.

use crate::netlink::{self, ERROR, Outgoing, REQUEST, Socket};
use std::io;

/// `NFNL_SUBSYS_NFTABLES << 8`, with `NFT_MSG_NEWGEN` and `NFT_MSG_GETGEN` (`include/uapi/linux/netfilter/nf_tables.h`).
const NEW_GENERATION: u16 = 0xa0f;
const GET_GENERATION: u16 = 0xa10;

/// `NFTA_GEN_ID`: a number of four bytes in network byte order.
const ID: u16 = 1;

/// The length of `struct nfgenmsg`.
const HEAD: usize = 4;

/// The number.
///
/// # Errors
/// If the kernel has no nftables or does not answer.
pub fn current() -> io::Result<u32> {
    let mut socket = Socket::open()?;
    let mut request = Outgoing::default();
    request.push(GET_GENERATION, REQUEST, 1, &[0; HEAD], &[]);
    socket.send(&request)?;
    loop {
        for message in netlink::messages(socket.receive()?) {
            match message.kind {
                ERROR => return Err(message.error().unwrap_or_else(|| io::Error::other("an empty answer"))),
                NEW_GENERATION => {
                    let body = message.payload.get(HEAD..).unwrap_or_default();
                    let id = netlink::attributes(body).find(|(kind, _)| *kind == ID);
                    let bytes = id.and_then(|(_, value)| value.first_chunk());
                    let bytes = bytes.ok_or_else(|| io::Error::other("an answer without the number"))?;
                    return Ok(u32::from_be_bytes(*bytes));
                }
                _ => {}
            }
        }
    }
}
