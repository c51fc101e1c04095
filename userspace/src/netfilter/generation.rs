//! The generation of the nftables rules of a network namespace: a number that the kernel changes
//! with each transaction on them.

use std::io;

use rtnetlink::{
    packet_core::{
        DecodeError, NLM_F_REQUEST, NetlinkDeserializable, NetlinkHeader, NetlinkMessage,
        NetlinkPayload, NetlinkSerializable, NlasIterator, parse_u32_be,
    },
    sys::{Socket, SocketAddr, protocols::NETLINK_NETFILTER},
};

/// `NFNL_SUBSYS_NFTABLES`, as the high octet of a message's type.
const SUBSYSTEM: u16 = 10 << 8;
/// `NFT_MSG_GETGEN`.
const ASK: u16 = SUBSYSTEM | 16;
/// `NFT_MSG_NEWGEN`.
const ANSWER: u16 = SUBSYSTEM | 15;
/// `NFTA_GEN_ID`: the generation, in network byte order.
const ID: u16 = 1;
/// Size of `struct nfgenmsg` in bytes.
const HEADER: usize = 4;
/// Room for the answer in bytes. It has the generation, and number and name of a process.
const ROOM: usize = 1024;

/// The generation of the rules in the namespace of the calling thread. The kernel loads nftables for
/// that if nobody has used it before. `None`: the kernel does not tell.
pub(super) fn read() -> Option<u32> {
    ask().inspect_err(|error| tracing::debug!("generation of the nftables rules: {error}")).ok()
}

fn ask() -> io::Result<u32> {
    let socket = Socket::new(NETLINK_NETFILTER)?;
    // The answer is ready when the request has been sent.
    socket.set_non_blocking(true)?;
    let mut message = NetlinkMessage::from(Ask);
    message.header.flags = NLM_F_REQUEST;
    message.finalize();
    let mut bytes = vec![0; message.buffer_len()];
    message.serialize(&mut bytes);
    socket.send_to(&bytes, &SocketAddr::new(0, 0), 0)?;
    let mut answer = vec![0; ROOM];
    let len = socket.recv(&mut answer.as_mut_slice(), 0)?;
    generation(answer.get(..len).unwrap_or_default())
}

/// The generation in an answer.
fn generation(answer: &[u8]) -> io::Result<u32> {
    match NetlinkMessage::<Answer>::deserialize(answer).map_err(io::Error::other)?.payload {
        NetlinkPayload::InnerMessage(Answer(id)) => Ok(id),
        NetlinkPayload::Error(error) => Err(error.to_io()),
        _ => Err(io::Error::other("an answer of another kind")),
    }
}

/// The request: a `struct nfgenmsg` of zeros.
struct Ask;

impl NetlinkSerializable for Ask {
    fn message_type(&self) -> u16 {
        ASK
    }

    fn buffer_len(&self) -> usize {
        HEADER
    }

    fn serialize(&self, buffer: &mut [u8]) {
        buffer.fill(0);
    }
}

impl From<Ask> for NetlinkPayload<Ask> {
    fn from(ask: Ask) -> Self {
        Self::InnerMessage(ask)
    }
}

/// The answer: the generation.
struct Answer(u32);

impl NetlinkDeserializable for Answer {
    type Error = DecodeError;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, DecodeError> {
        if header.message_type != ANSWER {
            return Err("it is no generation".into());
        }
        for attribute in NlasIterator::new(payload.get(HEADER..).unwrap_or_default()) {
            let attribute = attribute?;
            if attribute.kind() == ID {
                return parse_u32_be(attribute.value()).map(Self);
            }
        }
        Err("it has no generation".into())
    }
}

#[cfg(test)]
mod tests {
    use std::{os::fd::AsFd as _, process::Command};

    use super::*;
    use crate::netns::{run_in, unnamed_netns};

    #[test]
    fn the_generation_is_read_from_the_answer() {
        let answer = |kind: u16, attributes: &[&[u8]]| {
            let body = [&[0; HEADER][..], &attributes.concat()].concat();
            let len = u32::try_from(16 + body.len()).unwrap();
            let header = [&len.to_ne_bytes()[..], &kind.to_ne_bytes(), &[0; 10]].concat();
            generation(&[header, body].concat())
        };
        let attribute = |kind: u16, value: [u8; 4]| {
            [&8_u16.to_ne_bytes()[..], &kind.to_ne_bytes(), &value].concat()
        };
        let (pid, id) = (attribute(2, [9; 4]), attribute(ID, [0, 0, 1, 2]));
        assert_eq!(answer(ANSWER, &[&pid, &id]).unwrap(), 258);
        assert!(answer(ANSWER, &[&pid]).is_err());
        assert!(answer(ASK, &[&id]).is_err());
        assert!(generation(&[]).is_err());
        // `NLMSG_ERROR` with EPERM.
        let refused = [&36_u32.to_ne_bytes()[..], &2_u16.to_ne_bytes(), &[0; 10]].concat();
        let refused = [&refused[..], &(-1_i32).to_ne_bytes(), &[0; 16]].concat();
        let error = generation(&refused).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::PermissionDenied);
    }

    #[test]
    #[ignore = "needs root"]
    fn each_change_of_the_rules_is_a_new_generation() {
        let netns = unnamed_netns().unwrap();
        run_in(netns.as_fd(), || {
            let change = |arguments: &[&str]| {
                let ended = Command::new("iptables-nft").args(arguments).status().unwrap();
                assert!(ended.success(), "{arguments:?}");
            };
            change(&["-t", "nat", "-N", "ONE"]);
            let before = read();
            assert!(before.is_some());
            assert_eq!(read(), before);
            change(&["-t", "nat", "-N", "TWO"]);
            assert_ne!(read(), before);
        })
        .unwrap();
    }
}
