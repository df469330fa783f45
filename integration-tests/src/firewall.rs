//! Which nftables tables there are, asked of the kernel itself: the demo needs
//! no package, so it cannot count on the `nft` command.
//!
//! One dump of NFT_MSG_GETTABLE over netlink(7); see `linux/netfilter/nfnetlink.h`
//! and `linux/netfilter/nf_tables.h` for the numbers.

use anyhow::{Context, Result, bail};
use netlink_sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER};

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFT_MSG_NEWTABLE: u16 = 0;
const NFT_MSG_GETTABLE: u16 = 1;
const NFTA_TABLE_NAME: u16 = 1;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_DUMP: u16 = 0x300;
const NLMSG_ERROR: u16 = 2;
const NLMSG_DONE: u16 = 3;
/// struct nlmsghdr and struct nfgenmsg.
const HEADER: usize = 16;
const FAMILY_HEADER: usize = 4;

/// The names of all tables of this network namespace.
///
/// # Errors
/// The kernel does not answer, or refuses.
pub fn tables() -> Result<Vec<String>> {
    let mut socket = Socket::new(NETLINK_NETFILTER).context("netlink socket")?;
    socket.bind_auto()?;
    socket.connect(&SocketAddr::new(0, 0))?;
    let mut request = Vec::new();
    request.extend_from_slice(&((HEADER + FAMILY_HEADER) as u32).to_ne_bytes());
    request.extend_from_slice(&(NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_GETTABLE).to_ne_bytes());
    request.extend_from_slice(&(NLM_F_REQUEST | NLM_F_DUMP).to_ne_bytes());
    request.extend_from_slice(&[0; 8 + FAMILY_HEADER]);
    socket.send(&request, 0).context("netlink request")?;

    let mut names = Vec::new();
    loop {
        let (datagram, _) = socket.recv_from_full().context("netlink answer")?;
        let mut rest = datagram.as_slice();
        while rest.len() >= HEADER {
            let length = u32_at(rest, 0)? as usize;
            let message = rest.get(..length).context("a cut-off netlink message")?;
            match u16_at(message, 4)? {
                NLMSG_DONE => return Ok(names),
                NLMSG_ERROR => bail!("the kernel refuses to list nftables tables"),
                kind if kind == NFNL_SUBSYS_NFTABLES << 8 | NFT_MSG_NEWTABLE => {
                    names.extend(name_of(&message[HEADER + FAMILY_HEADER..])?);
                }
                _ => {}
            }
            rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        }
    }
}

/// The table's name among its attributes.
fn name_of(mut attributes: &[u8]) -> Result<Option<String>> {
    while attributes.len() >= 4 {
        let length = usize::from(u16_at(attributes, 0)?);
        let value = attributes.get(4..length).context("a cut-off attribute")?;
        if u16_at(attributes, 2)? == NFTA_TABLE_NAME {
            let name = value.strip_suffix(&[0]).unwrap_or(value);
            return Ok(Some(String::from_utf8_lossy(name).into_owned()));
        }
        attributes = attributes
            .get(length.next_multiple_of(4)..)
            .unwrap_or_default();
    }
    Ok(None)
}

fn u16_at(bytes: &[u8], at: usize) -> Result<u16> {
    let bytes = bytes.get(at..at + 2).context("a short netlink message")?;
    Ok(u16::from_ne_bytes(bytes.try_into()?))
}

fn u32_at(bytes: &[u8], at: usize) -> Result<u32> {
    let bytes = bytes.get(at..at + 4).context("a short netlink message")?;
    Ok(u32::from_ne_bytes(bytes.try_into()?))
}
