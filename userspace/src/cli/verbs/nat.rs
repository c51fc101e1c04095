//! `nat`.

use std::io::Write;

use crate::{
    api::{
        Backend,
        types::{NatQuery, NatRow},
    },
    cli::{
        args::{Format, NatLsArgs},
        failure::Failure,
        output::{self, Row, or_dash},
    },
};

impl Row for NatRow {
    const HEADERS: &'static [&'static str] =
        &["PROTO", "STATE", "CONTAINER", "ORIG", "TRANSLATED", "TIMEOUT", "PACKETS", "BYTES"];

    fn cells(&self) -> Vec<String> {
        vec![
            self.protocol.name().to_owned(),
            self.state.clone(),
            or_dash(&self.container),
            format!("{}:{}→{}:{}", self.src, self.src_port, self.dst, self.dst_port),
            format!(
                "{}:{}→{}:{}",
                self.nat_src, self.nat_src_port, self.nat_dst, self.nat_dst_port
            ),
            output::duration(self.timeout_s),
            format!("{}/{}", self.orig_packets, self.reply_packets),
            format!("{}/{}", output::size(self.orig_bytes), output::size(self.reply_bytes)),
        ]
    }
}

pub(crate) async fn nat(
    backend: &dyn Backend,
    args: NatLsArgs,
    format: Format,
    out: &mut dyn Write,
) -> Result<(), Failure> {
    let NatLsArgs { container, protocol, address } = args;
    let rows = backend.nat(NatQuery { container, protocol, address }).await?;
    Ok(output::rows(out, format, &rows)?)
}
